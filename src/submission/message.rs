//! Reads one message, by DATA or by BDAT, and hands it to the intake.
//!
//! What is refused is read to its end all the same, so that the client sees the reply; but not
//! for ever: then it is refused in mid-message and hung up on. Easy to get wrong: the 250 is said only after the intake returned,
//! and the reservation of its octets lives until then.

use std::sync::Arc;

use bytes::{Buf, BytesMut};
use tokio::time::{Instant, timeout_at};
use tracing::{debug, warn};

use crate::ext::Timestamp;
use crate::intake::{SmtpFacts, Source, Submission, Way};
use crate::mail::{Body, Draft, Envelope, HeaderBlock, Refusal, Reply, TenantId};
use crate::smtp::{DataFault, DataLimits, DataReader, Progress, Step};

use super::authorize;
use super::connection::{Connection, End, TOO_SLOW};
use super::counts::Reservation;
use super::draft::Spilling;
use super::listener::Door;
use super::{Duty, Settings};

/// Room in the input buffer while a message is read: a little over one TLS record.
const DATA_READ_OCTETS: usize = 20 * 1024;

/// A message that is being read.
pub(super) struct Incoming {
    reader: DataReader,
    spilling: Spilling,
    reservation: Reservation,
    /// Why it is refused, for reasons that are not in its octets.
    refusal: Option<Refusal>,
    begun: Instant,
    /// Octets of the wire so far.
    octets: u64,
}

impl Incoming {
    fn new(door: &Door, tenant: TenantId, framing: impl FnOnce(DataLimits) -> DataReader) -> Self {
        let limits = DataLimits {
            message_bytes_max: door.settings.session.message_bytes_max,
            header_bytes_max: door.settings.header_bytes_max,
            bare_line_ends: door.settings.bare_line_ends,
        };
        Self {
            reader: framing(limits),
            spilling: Spilling::new(&door.drafts_folder, &door.gate),
            reservation: door.drafts.reserve(tenant),
            refusal: None,
            begun: Instant::now(),
            octets: 0,
        }
    }

    /// Takes octets off `input`, at most `octets_max`, up to the end of the message.
    async fn take(&mut self, input: &mut BytesMut, octets_max: usize) -> Progress {
        let mut slice = input.get(..input.len().min(octets_max)).unwrap_or_default();
        let before = slice.len();
        let progress = self.reader.read(&mut slice);
        let taken = before - slice.len();
        input.advance(taken);
        self.octets = self.octets.saturating_add(taken as u64);
        if self.refusal.is_none() && self.reader.fault().is_none() {
            self.keep().await;
        }
        progress
    }

    async fn keep(&mut self) {
        if !self.reservation.grow_to(self.reader.received()) {
            let reply = Reply::enhanced(452, 3, 1, "Too much mail is being handed in; try again in a minute");
            self.give_up(Refusal::with_cause(reply, "drafts_bytes_max or drafts_bytes_per_tenant_max reached"));
        } else if let Err(error) = self.spilling.relieve(&mut self.reader).await {
            self.give_up(spill_failed(&error));
        }
    }

    fn give_up(&mut self, refusal: Refusal) {
        self.reader.discard();
        self.refusal.get_or_insert(refusal);
    }

    /// When the next octets must be here, so that the average stays above the floor.
    fn deadline(&self, settings: &Settings) -> Instant {
        pace(self.begun, self.octets, settings)
    }

    fn is_refused(&self) -> bool {
        self.refusal.is_some() || self.reader.fault().is_some()
    }

    /// Whether so much came after the refusal that the peer will not stop by itself.
    fn is_hopeless(&self, settings: &Settings) -> bool {
        self.is_refused() && self.octets > settings.session.drained_octets_max()
    }

    /// The draft, and its reservation, which must outlive the intake.
    async fn end(self, settings: &Settings) -> Result<(Draft, Reservation), Refusal> {
        if let Some(refusal) = self.refusal {
            return Err(refusal);
        }
        let (header, rest) = self.reader.finish().map_err(|fault| Refusal::plain(fault_reply(fault, settings)))?;
        if fields_in(&header) > settings.header_fields_max {
            let max = settings.header_fields_max;
            let text = format!("The header has too many fields; the limit is {max}");
            return Err(Refusal::plain(Reply::enhanced(552, 3, 4, text)));
        }
        let header = HeaderBlock::parse(&header)
            .map_err(|why| Refusal::plain(Reply::enhanced(554, 6, 0, format!("The message cannot be read: {why}"))))?;
        let body: Body = self.spilling.end(rest).await.map_err(|error| spill_failed(&error))?;
        Ok((Draft { header, body }, self.reservation))
    }
}

/// Fields of a header block: lines that do not continue the one before. A field costs far more
/// memory than its octets once it is parsed, so they are counted first.
fn fields_in(header: &[u8]) -> usize {
    header.split(|octet| *octet == b'\n').filter(|line| !matches!(line.first(), None | Some(b' ' | b'\t'))).count()
}

fn pace(begun: Instant, octets: u64, settings: &Settings) -> Instant {
    let seconds = octets / settings.data_bytes_per_second_min.max(1);
    begun + settings.data_grace + std::time::Duration::from_secs(seconds.min(365 * 86_400))
}

fn spill_failed(error: &std::io::Error) -> Refusal {
    warn!(%error, "a spill file could not be written");
    Refusal::with_cause(Reply::enhanced(452, 3, 1, "No room for the message now; try again later"), error)
}

fn fault_reply(fault: DataFault, settings: &Settings) -> Reply {
    let max = settings.session.message_bytes_max;
    let header_max = settings.header_bytes_max;
    match fault {
        DataFault::TooLarge => {
            Reply::enhanced(552, 3, 4, format!("The message is too large; the limit is {max} octets"))
        }
        DataFault::HeaderTooLarge => {
            Reply::enhanced(552, 3, 4, format!("The header is too large; the limit is {header_max} octets"))
        }
        DataFault::Nul => Reply::enhanced(554, 6, 0, "The message holds a NUL octet"),
        DataFault::BareLineEnd => Reply::enhanced(554, 6, 0, "The message holds a CR or LF alone; lines end in CR LF"),
    }
}

impl Connection {
    /// DATA: 354 was said; reads to the final dot and answers.
    pub(super) async fn read_data(&mut self) -> Result<Step, End> {
        let mut incoming = Incoming::new(&self.door, self.tenant(), DataReader::dotted);
        loop {
            // Octets that a pipelining client sent along are here already.
            if incoming.take(&mut self.input, usize::MAX).await == Progress::Ended {
                return self.submit(incoming).await;
            }
            if incoming.is_hopeless(&self.door.settings) {
                return Err(self.last_word(incoming).await);
            }
            self.read_message(&incoming).await?;
        }
    }

    /// Why the message is refused, for a peer that is then hung up on: it will not come to the end at
    /// which the reply is due, and must not take a 421 for a reason to send the same again.
    async fn last_word(&self, incoming: Incoming) -> End {
        let settings = Arc::clone(&self.door.settings);
        match incoming.end(&settings).await {
            Err(refusal) => End::Refused(Box::new(self.told(&refusal))),
            Ok(_) => End::Told("4.3.0 Something went wrong here; try again later"),
        }
    }

    /// BDAT: reads exactly `octets`, then answers (RFC 3030 s3).
    pub(super) async fn read_chunk(&mut self, octets: u64, last: bool) -> Result<Step, End> {
        if octets > self.door.settings.session.drained_octets_max() {
            let refusal = Refusal::plain(fault_reply(DataFault::TooLarge, &self.door.settings));
            return Err(End::Refused(Box::new(self.told(&refusal))));
        }
        let mut incoming = match self.incoming.take() {
            Some(mut incoming) => {
                // Pauses between chunks have the deadline of commands, not that of the message.
                let recent = Instant::now().checked_sub(self.door.settings.data_grace / 2);
                incoming.begun = incoming.begun.max(recent.unwrap_or(incoming.begun));
                incoming
            }
            None => Box::new(Incoming::new(&self.door, self.tenant(), DataReader::chunked)),
        };
        let mut left = octets;
        loop {
            let before = incoming.octets;
            let room = usize::try_from(left).unwrap_or(usize::MAX);
            incoming.take(&mut self.input, room).await;
            left = left.saturating_sub(incoming.octets - before);
            if left == 0 {
                break;
            }
            self.read_message(&incoming).await?;
        }
        if last {
            incoming.reader.end_chunks();
            return self.submit(*incoming).await;
        }
        if incoming.is_refused() {
            let settings = Arc::clone(&self.door.settings);
            let refusal = incoming.end(&settings).await.err();
            let reply = refusal.map(|refusal| self.told(&refusal));
            let reply = reply.unwrap_or_else(|| Reply::enhanced(451, 3, 0, "The message was given up"));
            return Ok(self.session.message_answered(&reply, &mut self.out));
        }
        self.incoming = Some(incoming);
        Ok(self.session.chunk_taken(octets, &mut self.out))
    }

    /// Reads `octets` of a refused chunk and forgets them.
    pub(super) async fn skip_chunk(&mut self, octets: u64) -> Result<(), End> {
        let settings = Arc::clone(&self.door.settings);
        if octets > settings.session.drained_octets_max() {
            return Err(End::Quiet);
        }
        let begun = Instant::now();
        let mut left = octets;
        loop {
            let taken = self.input.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            self.input.advance(taken);
            left = left.saturating_sub(taken as u64);
            if left == 0 {
                return Ok(());
            }
            self.read_until(pace(begun, octets - left, &settings)).await?;
        }
    }

    /// Whose message is read. At a door for submission nobody gets here without a login.
    pub(super) fn tenant(&self) -> TenantId {
        self.sender.as_ref().map_or(TenantId(0), |login| login.sender.tenant)
    }

    async fn read_message(&mut self, incoming: &Incoming) -> Result<(), End> {
        self.read_until(incoming.deadline(&self.door.settings)).await
    }

    async fn read_until(&mut self, deadline: Instant) -> Result<(), End> {
        self.flush().await?;
        let deadline = deadline.min(self.last_moment());
        match timeout_at(deadline, self.wire.read(&mut self.input, DATA_READ_OCTETS)).await {
            Err(_) => Err(TOO_SLOW),
            Ok(Ok(0)) => Err(End::Quiet),
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(error.into()),
        }
    }

    /// The message is whole: to the intake with it, and its answer to the client.
    async fn submit(&mut self, incoming: Incoming) -> Result<Step, End> {
        if self.input.capacity() > DATA_READ_OCTETS / 2 {
            self.input = BytesMut::from(self.input.as_ref());
        }
        let envelope = self.session.take_envelope();
        let settings = Arc::clone(&self.door.settings);
        let reply = match incoming.end(&settings).await {
            Ok((draft, _reservation)) => self.accept(envelope, draft).await,
            Err(refusal) => self.told(&refusal),
        };
        Ok(self.session.message_answered(&reply, &mut self.out))
    }

    async fn accept(&self, envelope: Option<Envelope>, draft: Draft) -> Reply {
        let lost = || Refusal::plain(Reply::enhanced(451, 3, 0, "Something went wrong here; try again later"));
        let Some(envelope) = envelope else { return self.told(&lost()) };
        let submitting = match &self.door.duty {
            Duty::Submission(submitting) => submitting,
            Duty::Reception(reception) => return self.receive(reception, envelope, draft).await,
        };
        let Some(login) = &self.sender else { return self.told(&lost()) };
        // Much time may have passed since MAIL: a suspension or a removed virtual IP counts now.
        let asked = (submitting, &*self.door.vips);
        if let Err(refusal) = authorize::reverse_path(asked, &login.sender, &self.vip, &envelope.reverse_path) {
            return self.told(&refusal);
        }
        let facts = SmtpFacts { helo: self.session.helo().to_owned(), peer: self.peer, tls: self.wire.tls() };
        let source = Source {
            tenant: login.sender.tenant,
            account: Some(login.sender.account),
            vip: self.vip.id,
            vip_name: self.vip.ehlo.clone(),
            class: login.sender.class,
            way: Way::Smtp(facts),
        };
        match (submitting.accept)(Submission { envelope, draft, source }, Timestamp::now()).await {
            Ok(queue_id) => Reply::enhanced(250, 0, 0, format!("Queued as {queue_id}")),
            // The intake has written the event of it, which is a line of the mail log: once is enough.
            Err(refusal) => {
                debug!(peer = %self.peer, cause = refusal.cause, "refused by the pipeline");
                refusal.reply
            }
        }
    }
}
