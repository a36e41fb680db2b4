//! A report as a message (RFC 8460 s5.3): `multipart/report` with a part for people and one for machines. Pure.
//!
//! Easy to get wrong: it is From the name that signs it, or receivers ignore it; and its session is not in the
//! next report, nor held up by the policies it reports about: its lane says so ([`Way::TlsReport`]).

use bytes::Bytes;

use super::counts::DomainDay;
use super::report::{file_name, report_id};
use crate::ext::{self, Timestamp};
use crate::intake::{Source, Submission, Way};
use crate::mail::{
    Address, Body, Class, Domain, Draft, Envelope, ForwardPath, HeaderBlock, MailParameters, Notify, QueueId,
    ReversePath, Smtputf8, TenantId, to_base64,
};
use crate::vips::Vip;

/// By which virtual IP, as whose mail, and signed by which name.
#[derive(Clone, Debug)]
pub(super) struct Egress {
    pub(super) vip: Vip,
    pub(super) tenant: TenantId,
    pub(super) signed_as: Domain,
}

/// What is written.
pub(super) struct Letter<'a> {
    pub(super) day: &'a DomainDay,
    pub(super) id: QueueId,
    pub(super) to: &'a Address,
    pub(super) gzip: &'a [u8],
    pub(super) organization: &'a str,
}

impl Letter<'_> {
    /// The message and its envelope; from nobody, as notices are: nobody is to be told of it.
    pub(super) fn submission(&self, egress: &Egress, now: Timestamp) -> Submission {
        let smtputf8 = if self.to.needs_smtputf8() { Smtputf8::Needed } else { Smtputf8::NotNeeded };
        Submission {
            envelope: Envelope {
                reverse_path: ReversePath(None),
                parameters: MailParameters { smtputf8, ..MailParameters::default() },
                recipients: vec![ForwardPath { address: self.to.clone(), notify: Notify::NEVER, orcpt: None }],
            },
            draft: self.draft(&egress.signed_as, now),
            source: Source {
                tenant: egress.tenant,
                account: None,
                vip: egress.vip.id,
                vip_name: egress.vip.ehlo.clone(),
                class: Class::Transactional,
                way: Way::TlsReport,
            },
        }
    }

    fn draft(&self, submitter: &Domain, now: Timestamp) -> Draft {
        let boundary = format!("=_{}", ext::base32(&ext::random_bytes::<10>()));
        let (domain, id) = (&self.day.domain, report_id(self.id, submitter));
        let mut header = HeaderBlock::default();
        header.append("Date", &now.rfc5322());
        header.append("From", &format!("<postmaster@{submitter}>"));
        header.append("To", &format!("<{}>", self.to));
        let subject = format!("Report Domain: {domain}\r\n Submitter: {submitter}\r\n Report-ID: <{id}>");
        header.append("Subject", &subject);
        header.append("Message-ID", &format!("<{}@{submitter}>", QueueId::new(now)));
        header.append("TLS-Report-Domain", domain.as_str());
        header.append("TLS-Report-Submitter", submitter.as_str());
        // RFC 3834 s5: other programs must not answer it.
        header.append("Auto-Submitted", "auto-generated");
        header.append("MIME-Version", "1.0");
        let kind = format!("multipart/report; report-type=\"tlsrpt\";\r\n\tboundary=\"{boundary}\"");
        header.append("Content-Type", &kind);
        let (good, bad) = self.day.totals();
        let text = format!(
            "This is an aggregate TLS report (RFC 8460) from {submitter} about mail sent to\r\n{domain}: \
             {good} sessions satisfied its policies, {bad} did not.\r\n\r\nReported by {}.\r\n",
            ascii(self.organization),
        );
        let file = file_name(self.day, self.id, submitter);
        let mut body = format!(
            "--{boundary}\r\nContent-Type: text/plain; charset=us-ascii\r\n\r\n{text}\r\n\
             --{boundary}\r\nContent-Type: application/tlsrpt+gzip\r\nContent-Transfer-Encoding: base64\r\n\
             Content-Disposition: attachment;\r\n\tfilename=\"{file}\"\r\n\r\n"
        )
        .into_bytes();
        body.extend_from_slice(&to_base64(self.gzip));
        body.extend_from_slice(format!("\r\n--{boundary}--\r\n").as_bytes());
        Draft { header, body: Body::Memory(Bytes::from(body)) }
    }
}

fn ascii(text: &str) -> String {
    text.chars()
        .map(|character| if character.is_ascii() && !character.is_control() { character } else { '?' })
        .collect()
}
