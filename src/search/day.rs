//! The index of one day: the messages whose ids were made on it, over the tantivy library.
//!
//! Nobody else knows that library. What is stored is a message's [`Fate`]; addresses and texts are only terms.
//! Easy to get wrong: a document that was replaced or removed is in the files until they are merged, which is
//! why [`Day::purge`] exists.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap};
use std::ops::Bound;
use std::path::Path;

use rustix::io::Errno;
use tantivy::collector::{Collector, SegmentCollector};
use tantivy::columnar::Column;
use tantivy::indexer::IndexWriterOptions;
use tantivy::query::{
    AllQuery, BooleanQuery, ConstScoreQuery, InvertedIndexRangeQuery, Occur, Query, TermQuery, TermSetQuery,
};
use tantivy::schema::{
    BytesOptions, FAST, Field, INDEXED, IndexRecordOption, Schema, TextFieldIndexing, TextOptions, Value,
};
use tantivy::{
    DocAddress, DocId, Index, IndexReader, IndexWriter, ReloadPolicy, Score, Searcher, SegmentOrdinal, SegmentReader,
    TantivyDocument, TantivyError, Term,
};

use super::criteria::{AskedWord, Criteria, Terms, asked_words};
use super::entry::Fate;
use crate::events::History;
use crate::mail::{QueueId, TenantId};
use crate::statistics::{STATUSES, Status};
use crate::store::codec;

/// Whether the process or the disk was short of something that comes back: what is there stays as it was, and a new
/// writer puts what is missing into files of its own.
fn is_shortage(error: &TantivyError) -> bool {
    let TantivyError::IoError(error) = error else { return false };
    let errno = error.raw_os_error().map(Errno::from_raw_os_error);
    let passing = [Errno::MFILE, Errno::NFILE, Errno::NOMEM, Errno::AGAIN, Errno::NOSPC, Errno::DQUOT];
    errno.is_some_and(|errno| passing.contains(&errno))
}

/// Rounds of rewriting, should a merge of the library's own come between.
const PURGE_ROUNDS_MAX: usize = 5;
/// Memory in which documents are gathered before they become a segment.
const GATHER_BYTES: usize = 16 * 1024 * 1024;
/// After everything that begins with a text: no character is behind it.
const BEHIND: char = '\u{10FFFF}';

/// Where terms are.
#[derive(Clone, Copy)]
struct Fields {
    id: Field,
    tenant: Field,
    account: Field,
    recipient: Field,
    domain: Field,
    sender: Field,
    subject: Field,
    message_id: Field,
    tag: Field,
    provider: Field,
    reply: Field,
    status: Field,
    at: Field,
    high: Field,
    low: Field,
    fate: Field,
}

const AT: &str = "at";
const HIGH: &str = "high";
const LOW: &str = "low";

fn schema() -> (Schema, Fields) {
    let mut schema = Schema::builder();
    let terms = TextFieldIndexing::default();
    let terms = terms.set_tokenizer("raw").set_index_option(IndexRecordOption::Basic).set_fieldnorms(false);
    let text = TextOptions::default().set_indexing_options(terms);
    let fields = Fields {
        id: schema.add_bytes_field("id", BytesOptions::default().set_indexed()),
        tenant: schema.add_u64_field("tenant", INDEXED),
        account: schema.add_u64_field("account", INDEXED),
        recipient: schema.add_text_field("recipient", text.clone()),
        domain: schema.add_text_field("domain", text.clone()),
        sender: schema.add_text_field("sender", text.clone()),
        subject: schema.add_text_field("subject", text.clone()),
        message_id: schema.add_text_field("message_id", text.clone()),
        tag: schema.add_text_field("tag", text.clone()),
        provider: schema.add_text_field("provider", text.clone()),
        reply: schema.add_text_field("reply", text),
        status: schema.add_u64_field("status", INDEXED),
        at: schema.add_u64_field(AT, FAST),
        high: schema.add_u64_field(HIGH, FAST),
        low: schema.add_u64_field(LOW, FAST),
        fate: schema.add_bytes_field("fate", BytesOptions::default().set_stored()),
    };
    (schema.build(), fields)
}

/// Why an index cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DayError {
    /// It is damaged or of another form: made again from the log.
    #[error("the index of {0} is damaged: {1}")]
    Damaged(String, String),
    /// The disk or the library failed; later it may work.
    #[error("the index of {0}: {1}")]
    Failed(String, String),
    /// What was changed could not be made durable: nobody can tell what the disk has of it, and a later sync says that
    /// all is well.
    #[error("the index of {0} could not be made durable: {1}")]
    Unsynced(String, String),
}

/// Found messages, newest first.
#[derive(Debug, Default)]
pub struct Found {
    /// With what became of them.
    pub messages: Vec<(QueueId, Fate)>,
    /// Documents that were looked at.
    pub seen: u64,
}

/// What is wanted of one day.
pub struct Wanted<'a> {
    /// Folded.
    pub criteria: &'a Criteria,
    /// Only ids before this one.
    pub before: Option<QueueId>,
    /// At most so many.
    pub most: usize,
}

/// One day's index.
pub struct Day {
    name: String,
    index: Index,
    reader: IndexReader,
    fields: Fields,
    /// What makes the next commit fail, as a disk does.
    #[cfg(test)]
    pub is_to_fail: std::sync::Arc<std::sync::atomic::AtomicBool>,
}

impl Day {
    /// Opens the index in `folder`, or makes it.
    ///
    /// # Errors
    /// If it is damaged or the disk fails.
    pub fn open(name: &str, folder: &Path) -> Result<Self, DayError> {
        let damaged = |error: TantivyError| DayError::Damaged(name.to_owned(), error.to_string());
        let failed = |error: String| DayError::Failed(name.to_owned(), error);
        let (schema, fields) = schema();
        let index = if folder.join("meta.json").exists() {
            Index::open_in_dir(folder).map_err(damaged)?
        } else {
            // What lies there without its list is what a crash left of the making.
            let _ = std::fs::remove_dir_all(folder);
            std::fs::create_dir_all(folder).map_err(|error| failed(error.to_string()))?;
            Index::create_in_dir(folder, schema.clone()).map_err(|error| failed(error.to_string()))?
        };
        if index.schema() != schema {
            return Err(DayError::Damaged(name.to_owned(), "it is of another form".to_owned()));
        }
        let reader = index.reader_builder().reload_policy(ReloadPolicy::Manual).try_into().map_err(damaged)?;
        Ok(Self {
            name: name.to_owned(),
            index,
            reader,
            fields,
            #[cfg(test)]
            is_to_fail: std::sync::Arc::default(),
        })
    }

    /// Reads all of its files and compares their checksums.
    ///
    /// # Errors
    /// If one is wrong, or they cannot be read.
    pub fn verify(&self) -> Result<(), DayError> {
        let bad = self.index.validate_checksum().map_err(|error| self.failed(&error))?;
        if bad.is_empty() {
            return Ok(());
        }
        Err(DayError::Damaged(self.name.clone(), format!("the checksums of {} files are wrong", bad.len())))
    }

    /// Messages in it.
    pub fn messages(&self) -> u64 {
        self.reader.searcher().num_docs()
    }

    fn failed(&self, error: &TantivyError) -> DayError {
        DayError::Failed(self.name.clone(), error.to_string())
    }

    /// Someone who may change it; one at a time.
    ///
    /// # Errors
    /// If somebody else has it, or the disk fails.
    pub fn writer(&self) -> Result<Writer, DayError> {
        let options = IndexWriterOptions::builder()
            .num_worker_threads(1)
            .num_merge_threads(1)
            .memory_budget_per_thread(GATHER_BYTES)
            .build();
        let inner = self.index.writer_with_options(options).map_err(|error| self.failed(&error))?;
        Ok(Writer {
            inner,
            fields: self.fields,
            name: self.name.clone(),
            #[cfg(test)]
            is_to_fail: std::sync::Arc::clone(&self.is_to_fail),
        })
    }

    /// Sees what was committed.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn refresh(&self) -> Result<(), DayError> {
        self.reader.reload().map_err(|error| self.failed(&error))
    }

    /// What became of one message; `None` if it is not in here.
    ///
    /// # Errors
    /// If the index cannot be read.
    pub fn fate(&self, id: QueueId) -> Result<Option<Fate>, DayError> {
        let criteria = Criteria { id: Some(id), ..Criteria::default() };
        let found = self.find(&Wanted { criteria: &criteria, before: None, most: 1 })?;
        Ok(found.messages.into_iter().next().map(|(_, fate)| fate))
    }

    /// The newest messages that are wanted.
    ///
    /// # Errors
    /// If the index cannot be read.
    pub fn find(&self, wanted: &Wanted<'_>) -> Result<Found, DayError> {
        let searcher = self.reader.searcher();
        let times = (wanted.criteria.from.map_or(0, |at| at.0), wanted.criteria.until.map_or(u64::MAX, |at| at.0));
        let newest = Newest { most: wanted.most, before: wanted.before.map(halves), times };
        let query = self.query(wanted.criteria);
        let (seen, places) = searcher.search(&*query, &newest).map_err(|error| self.failed(&error))?;
        let messages = places.into_iter().map(|(halves, place)| Ok((whole(halves), self.read(&searcher, place)?)));
        Ok(Found { messages: messages.collect::<Result<_, DayError>>()?, seen })
    }

    /// The ids of a tenant's messages, newest first, those before one, at most so many.
    ///
    /// # Errors
    /// If the index cannot be read.
    pub fn ids_of(&self, tenant: TenantId, before: Option<QueueId>, most: usize) -> Result<Vec<QueueId>, DayError> {
        let query = term(Term::from_field_u64(self.fields.tenant, tenant.0));
        let newest = Newest { most, before: before.map(halves), times: (0, u64::MAX) };
        let found = self.reader.searcher().search(&*query, &newest).map_err(|error| self.failed(&error))?;
        Ok(found.1.into_iter().map(|(halves, _)| whole(halves)).collect())
    }

    /// The tenants that have, or had, messages in it.
    ///
    /// # Errors
    /// If the index cannot be read.
    pub fn tenants(&self) -> Result<BTreeSet<TenantId>, DayError> {
        let mut found = BTreeSet::new();
        for segment in self.reader.searcher().segment_readers() {
            let inverted = segment.inverted_index(self.fields.tenant).map_err(|error| self.failed(&error))?;
            let stream = inverted.terms().stream();
            let mut stream = stream.map_err(|error| self.failed(&error.into()))?;
            while let Some((term, _)) = stream.next() {
                found.extend(term.first_chunk::<8>().map(|bytes| TenantId(u64::from_be_bytes(*bytes))));
            }
        }
        Ok(found)
    }

    /// Whether a recipient is still in the files.
    #[cfg(test)]
    pub fn has_recipient(&self, text: &str) -> bool {
        self.reader.searcher().segment_readers().iter().any(|segment| {
            let inverted = segment.inverted_index(self.fields.recipient).unwrap();
            let mut stream = inverted.terms().stream().unwrap();
            while let Some((term, _)) = stream.next() {
                if term == text.as_bytes() {
                    return true;
                }
            }
            false
        })
    }

    fn read(&self, searcher: &Searcher, place: DocAddress) -> Result<Fate, DayError> {
        let document: TantivyDocument = searcher.doc(place).map_err(|error| self.failed(&error))?;
        let bytes = document.get_first(self.fields.fate).and_then(|value| value.as_bytes());
        let fate = bytes.and_then(|bytes| codec::decode(bytes).ok());
        fate.ok_or_else(|| DayError::Damaged(self.name.clone(), "a document cannot be read".to_owned()))
    }

    fn query(&self, criteria: &Criteria) -> Box<dyn Query> {
        let fields = self.fields;
        let mut must: Vec<Box<dyn Query>> = Vec::new();
        let number = |field, number| term(Term::from_field_u64(field, number));
        must.extend(criteria.tenant.map(|tenant| number(fields.tenant, tenant.0)));
        must.extend(criteria.account.map(|account| number(fields.account, account.0)));
        must.extend(criteria.status.map(|status| number(fields.status, code(status))));
        must.extend(criteria.id.map(|id| term(Term::from_field_bytes(fields.id, &id.0))));
        if let Some(granted) = &criteria.granted {
            let accounts = granted.keys().map(|account| Term::from_field_u64(fields.account, account.0));
            must.push(Box::new(TermSetQuery::new(accounts)));
        }
        for (field, exact) in [
            (fields.message_id, &criteria.message_id),
            (fields.recipient, &criteria.recipient),
            (fields.sender, &criteria.sender),
        ] {
            must.extend(exact.as_ref().map(|text| term(Term::from_field_text(field, text))));
        }
        for (field, beginning) in
            [(fields.domain, &criteria.domain), (fields.provider, &criteria.provider), (fields.tag, &criteria.tag)]
        {
            must.extend(beginning.as_ref().map(|text| begins(field, text)));
        }
        for (field, text) in [(fields.subject, &criteria.subject), (fields.reply, &criteria.reply)] {
            must.extend(asked_words(text).iter().map(|word| match word {
                AskedWord::Beginning(text) => begins(field, text),
                AskedWord::Whole(text) => term(Term::from_field_text(field, text)),
            }));
        }
        match must.len() {
            0 => Box::new(AllQuery),
            _ => Box::new(BooleanQuery::new(must.into_iter().map(|query| (Occur::Must, query)).collect())),
        }
    }
}

fn term(term: Term) -> Box<dyn Query> {
    Box::new(ConstScoreQuery::new(Box::new(TermQuery::new(term, IndexRecordOption::Basic)), 1.0))
}

fn begins(field: Field, text: &str) -> Box<dyn Query> {
    let from = Bound::Included(Term::from_field_text(field, text));
    let to = Bound::Included(Term::from_field_text(field, &format!("{text}{BEHIND}")));
    Box::new(ConstScoreQuery::new(Box::new(InvertedIndexRangeQuery::new(from, to)), 1.0))
}

fn code(status: Status) -> u64 {
    STATUSES.iter().position(|own| *own == status).unwrap_or_default() as u64
}

type Halves = (u64, u64);

fn halves(id: QueueId) -> Halves {
    let all = u128::from_be_bytes(id.0);
    (u64::try_from(all >> 64).unwrap_or_default(), u64::try_from(all & u128::from(u64::MAX)).unwrap_or_default())
}

fn whole((high, low): Halves) -> QueueId {
    QueueId(((u128::from(high) << 64) | u128::from(low)).to_be_bytes())
}

/// Changes one day's index.
pub struct Writer {
    inner: IndexWriter,
    fields: Fields,
    name: String,
    #[cfg(test)]
    is_to_fail: std::sync::Arc<std::sync::atomic::AtomicBool>,
}

impl Writer {
    fn failed(&self, error: &TantivyError) -> DayError {
        DayError::Failed(self.name.clone(), error.to_string())
    }

    /// Puts a message in, instead of what was known of it.
    ///
    /// # Errors
    /// If the library gave up; then a new writer is needed.
    pub fn put(&self, id: QueueId, history: &History, fate: &Fate) -> Result<(), DayError> {
        self.remove(id);
        let (fields, terms) = (self.fields, Terms::of(history, fate));
        let mut document = TantivyDocument::default();
        document.add_bytes(fields.id, &id.0);
        document.add_u64(fields.tenant, history.tenant.0);
        if let Some(account) = history.entry.as_ref().and_then(|entry| entry.account) {
            document.add_u64(fields.account, account.0);
        }
        for (field, list) in [
            (fields.recipient, &terms.recipients),
            (fields.domain, &terms.domains),
            (fields.sender, &terms.senders),
            (fields.subject, &terms.subject),
            (fields.tag, &terms.tags),
            (fields.provider, &terms.providers),
            (fields.reply, &terms.replies),
        ] {
            list.iter().for_each(|text| document.add_text(field, text));
        }
        document.add_text(fields.message_id, &terms.message_id);
        terms.statuses.iter().for_each(|status| document.add_u64(fields.status, code(*status)));
        let (high, low) = halves(id);
        document.add_u64(fields.at, history.accepted.0);
        document.add_u64(fields.high, high);
        document.add_u64(fields.low, low);
        document.add_bytes(fields.fate, &codec::encode(fate));
        self.inner.add_document(document).map(|_| ()).map_err(|error| self.failed(&error))
    }

    /// Takes a message out.
    pub fn remove(&self, id: QueueId) {
        self.inner.delete_term(Term::from_field_bytes(self.fields.id, &id.0));
    }

    /// Takes every message of a tenant out.
    pub fn remove_tenant(&self, tenant: TenantId) {
        self.inner.delete_term(Term::from_field_u64(self.fields.tenant, tenant.0));
    }

    /// Makes what was changed durable and visible to whoever refreshes.
    ///
    /// # Errors
    /// If the disk fails.
    pub fn commit(&mut self) -> Result<(), DayError> {
        let committed = self.inner.commit();
        #[cfg(test)]
        if self.is_to_fail.swap(false, std::sync::atomic::Ordering::Relaxed) {
            return Err(DayError::Unsynced(self.name.clone(), "a test says so".to_owned()));
        }
        committed.map(|_| ()).map_err(|error| {
            if is_shortage(&error) {
                self.failed(&error)
            } else {
                DayError::Unsynced(self.name.clone(), error.to_string())
            }
        })
    }

    /// Rewrites the files in which something was taken out, so that it is gone from the disk. Whether all of it
    /// is: a merge of the library's own that was under way keeps it, and then this is to be called again.
    ///
    /// # Errors
    /// If the disk fails.
    pub fn purge(&mut self) -> Result<bool, DayError> {
        let mut is_gone = false;
        for _ in 0..PURGE_ROUNDS_MAX {
            let segments = self.inner.index().searchable_segment_metas().map_err(|error| self.failed(&error))?;
            let touched: Vec<_> = segments.iter().filter(|segment| segment.has_deletes()).collect();
            is_gone = touched.is_empty();
            if is_gone {
                break;
            }
            for segment in touched {
                // One at a time: each becomes a file of what is left of it.
                if let Err(error) = self.inner.merge(&[segment.id()]).wait() {
                    tracing::debug!(%error, "a segment could not be rewritten, or was merged by somebody else");
                }
            }
        }
        self.inner.garbage_collect_files().wait().map_err(|error| self.failed(&error))?;
        Ok(is_gone)
    }

    /// Ends after the merges that are under way.
    ///
    /// # Errors
    /// If one of them failed.
    pub fn close(self) -> Result<(), DayError> {
        let name = self.name;
        self.inner.wait_merging_threads().map_err(|error| DayError::Failed(name, error.to_string()))
    }
}

/// Gathers the newest documents.
struct Newest {
    most: usize,
    before: Option<Halves>,
    /// Accepted from, and before.
    times: (u64, u64),
}

struct NewestOfSegment {
    at: Column<u64>,
    high: Column<u64>,
    low: Column<u64>,
    most: usize,
    before: Option<Halves>,
    times: (u64, u64),
    segment: SegmentOrdinal,
    found: BinaryHeap<Reverse<(Halves, DocId)>>,
    seen: u64,
}

type Places = (u64, Vec<(Halves, DocAddress)>);

impl Collector for Newest {
    type Fruit = Places;
    type Child = NewestOfSegment;

    fn for_segment(&self, segment: SegmentOrdinal, reader: &SegmentReader) -> tantivy::Result<NewestOfSegment> {
        let columns = reader.fast_fields();
        Ok(NewestOfSegment {
            at: columns.u64(AT)?,
            high: columns.u64(HIGH)?,
            low: columns.u64(LOW)?,
            most: self.most,
            before: self.before,
            times: self.times,
            segment,
            found: BinaryHeap::new(),
            seen: 0,
        })
    }

    fn requires_scoring(&self) -> bool {
        false
    }

    fn merge_fruits(&self, all: Vec<Places>) -> tantivy::Result<Places> {
        let seen = all.iter().map(|(seen, _)| *seen).sum();
        let mut found: Vec<_> = all.into_iter().flat_map(|(_, found)| found).collect();
        found.sort_unstable_by(|one, two| two.cmp(one));
        found.truncate(self.most);
        Ok((seen, found))
    }
}

impl SegmentCollector for NewestOfSegment {
    type Fruit = Places;

    fn collect(&mut self, document: DocId, _: Score) {
        self.seen = self.seen.saturating_add(1);
        let high = self.high.first(document).unwrap_or_default();
        let least = self.found.peek().filter(|_| self.found.len() >= self.most).map(|least| least.0.0);
        if least.is_some_and(|(least, _)| least > high) || self.before.is_some_and(|(before, _)| high > before) {
            return;
        }
        let halves = (high, self.low.first(document).unwrap_or_default());
        if self.before.is_some_and(|before| halves >= before) {
            return;
        }
        let at = self.at.first(document).unwrap_or_default();
        if at < self.times.0 || at >= self.times.1 {
            return;
        }
        self.found.push(Reverse((halves, document)));
        if self.found.len() > self.most {
            self.found.pop();
        }
    }

    fn harvest(self) -> Places {
        let place = |document| DocAddress::new(self.segment, document);
        (self.seen, self.found.into_iter().map(|Reverse((halves, document))| (halves, place(document))).collect())
    }
}
