//! Documents with their ids and shards, and their way into one body for each member.
//!
//! The rule: every id is valid before the first byte is split; documents keep their order and their bytes, but for the
//! shard's letter, put in as the first member, and line breaks between tokens, which become spaces. Must not know: who the
//! members are.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use memchr::{memchr_iter, memchr2_iter};
use twox_hash::XxHash64;

use super::error::DocumentError;
use super::payload::{Format, Payload};
use super::primary_key::{IdProblem, document_id, find_id};
use crate::proto::json;
use crate::proto::placement::shard_of;
use crate::types::SHARD_FIELD;
use crate::types::{ShardId, ShardSet};

/// The length of the id of a document whose id is written with escapes.
const ESCAPED: u16 = u16::MAX;

/// A position of a document and what follows from its id; small, because a body may hold millions.
#[derive(Debug, Clone)]
struct Entry {
    start: u32,
    end: u32,
    /// Where the id's text begins.
    id: u32,
    /// How long it is; [`ESCAPED`] if it is not in the text as such.
    id_len: u16,
    shard: ShardId,
}

/// The documents of a request, each with a valid id and its shard.
#[derive(Debug, Clone)]
pub struct Batch {
    primary_key: String,
    text: Bytes,
    /// Documents that had to be written anew; positions from `text.len()` on lie here.
    rewritten: Vec<u8>,
    entries: Vec<Entry>,
    /// Ids written with escapes, by the position of their document.
    escaped: BTreeMap<u32, String>,
    received: usize,
    distinct: usize,
    /// The body is a JSON object, not a list.
    one_object: bool,
}

/// One document of a [`Batch`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Document<'a> {
    /// The object as the client wrote it.
    pub text: &'a [u8],
    /// The id in its text form.
    pub id: &'a str,
    /// The shard that the id belongs to.
    pub shard: ShardId,
}

/// What one member gets.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Part {
    /// NDJSON, one document a line, each with its shard's letter.
    pub body: Vec<u8>,
    /// How many documents.
    pub documents: usize,
    /// Of which shards.
    pub shards: ShardSet,
}

impl Payload {
    /// Checks every id and gives each document its shard, of `shards` shards.
    ///
    /// # Errors
    /// [`DocumentError::Task`] for the first document without a valid id.
    ///
    /// # Panics
    /// If `shards` is 0.
    pub fn batch(self, primary_key: &str, shards: u16) -> Result<Batch, DocumentError> {
        let one_object = self.format == Format::Json && self.text.get(json::skip_space(&self.text, 0)) == Some(&b'{');
        let mut batch = Batch {
            primary_key: primary_key.to_owned(),
            text: self.text,
            rewritten: Vec::new(),
            entries: Vec::with_capacity(self.spans.len()),
            escaped: BTreeMap::new(),
            received: self.spans.len(),
            distinct: 0,
            one_object,
        };
        let mut hashes = Vec::with_capacity(self.spans.len());
        for (start, end) in self.spans {
            let entry = batch.locate(start, end, self.format, shards)?;
            hashes.push((XxHash64::oneshot(0, batch.id(&entry).as_bytes()), hashes.len()));
            batch.entries.push(entry);
        }
        batch.distinct = batch.count_distinct(hashes);
        Ok(batch)
    }
}

impl Batch {
    /// What [`Payload::batch`] holds for so many documents while it reads them, in bytes.
    pub fn size_of(documents: usize) -> usize {
        documents.saturating_mul(size_of::<Entry>() + size_of::<(u64, usize)>())
    }

    /// The primary key under which the ids were found.
    pub fn primary_key(&self) -> &str {
        &self.primary_key
    }

    /// How many documents the request has.
    pub fn received(&self) -> usize {
        self.received
    }

    /// How many different ids they have.
    pub fn distinct_ids(&self) -> usize {
        self.distinct
    }

    /// The documents in their order.
    pub fn documents(&self) -> impl Iterator<Item = Document<'_>> {
        self.entries.iter().map(|e| Document { text: self.slice(e.start, e.end), id: self.id(e), shard: e.shard })
    }

    /// The body that the documents came in.
    pub(super) fn text(&self) -> &[u8] {
        &self.text
    }

    /// Whether the body is a JSON object, not a list; a node spells such a document anew.
    pub(super) fn is_one_object(&self) -> bool {
        self.one_object
    }

    /// Of each document, whether a later one has the same id.
    pub(super) fn replaced(&self) -> Vec<bool> {
        let mut replaced = vec![false; self.entries.len()];
        if self.distinct == self.received {
            return replaced;
        }
        let mut order: Vec<usize> = (0..self.entries.len()).collect();
        order.sort_unstable_by(|a, b| self.id(&self.entries[*a]).cmp(self.id(&self.entries[*b])).then(a.cmp(b)));
        for pair in order.windows(2) {
            replaced[pair[0]] = self.id(&self.entries[pair[0]]) == self.id(&self.entries[pair[1]]);
        }
        replaced
    }

    /// Takes out documents that later ones replace, by their positions in order. The counts stay those of the request.
    pub(super) fn take_out(&mut self, positions: &[usize]) {
        let (mut at, mut next) = (0, positions.iter().peekable());
        self.entries.retain(|_| {
            at += 1;
            next.next_if(|position| **position == at - 1).is_none()
        });
    }

    /// The shards that the documents belong to.
    pub fn shards(&self) -> ShardSet {
        self.entries.iter().map(|e| e.shard).collect()
    }

    /// One body for each of `members` members; `owners` tells which of them (numbers below `members`) hold a shard.
    ///
    /// # Panics
    /// If `owners` names a number that is not below `members`.
    pub fn split<'o>(&self, members: usize, owners: impl Fn(ShardId) -> &'o [usize]) -> Vec<Part> {
        let sizes = self.sizes(members, &owners);
        let part = |size| Part { body: Vec::with_capacity(size), ..Part::default() };
        let mut parts: Vec<Part> = sizes.into_iter().map(part).collect();
        for entry in &self.entries {
            let document = self.slice(entry.start, entry.end);
            for owner in owners(entry.shard) {
                let part = &mut parts[*owner];
                write_line(&mut part.body, document, entry.shard);
                part.documents += 1;
                part.shards.insert(entry.shard);
            }
        }
        parts
    }

    /// How large [`Self::split`] makes each body at most, in bytes.
    ///
    /// # Panics
    /// As [`Self::split`].
    pub fn sizes<'o>(&self, members: usize, owners: impl Fn(ShardId) -> &'o [usize]) -> Vec<usize> {
        let mut sizes = vec![0; members];
        for entry in &self.entries {
            for owner in owners(entry.shard) {
                sizes[*owner] += (entry.end - entry.start) as usize + OPENING.len() + 6;
            }
        }
        sizes
    }

    fn slice(&self, start: u32, end: u32) -> &[u8] {
        let (start, end, base) = (start as usize, end as usize, self.text.len());
        if start < base { &self.text[start..end] } else { &self.rewritten[start - base..end - base] }
    }

    fn id(&self, entry: &Entry) -> &str {
        if entry.id_len == ESCAPED {
            return &self.escaped[&entry.start];
        }
        let raw = self.slice(entry.id, entry.id + u32::from(entry.id_len));
        str::from_utf8(raw).expect("an id that was found valid is ASCII")
    }

    /// Finds the id of the document at this place.
    fn locate(&mut self, start: u32, end: u32, format: Format, shards: u16) -> Result<Entry, DocumentError> {
        // A node keeps the last of repeated names in JSON before it looks for the id, but not in NDJSON.
        let found = find_id(self.slice(start, end), &self.primary_key, format == Format::Json);
        let (start, end, found) = if found == Err(IdProblem::Repeated) {
            let (start, end) = self.rewrite(start, end);
            (start, end, find_id(self.slice(start, end), &self.primary_key, false))
        } else {
            (start, end, found)
        };
        let document = self.slice(start, end);
        let place = found.map_err(|problem| match problem {
            IdProblem::Invalid(place) => DocumentError::invalid_id(&document[place]),
            IdProblem::Missing => DocumentError::missing_id(&self.primary_key, document),
            IdProblem::TooMany | IdProblem::Repeated => DocumentError::too_many_ids(&self.primary_key, document),
        })?;
        let raw = &document[place.clone()];
        let id = document_id(raw).ok_or_else(|| DocumentError::invalid_id(raw))?;
        let shard = shard_of(&id, shards);
        let offset = |n: usize| start + u32::try_from(n).expect("a place inside a document");
        let quoted = raw.first() == Some(&b'"');
        match id {
            std::borrow::Cow::Borrowed(id) => {
                let id_len = u16::try_from(id.len()).expect("an id is at most 511 bytes long");
                let id = offset(place.start + usize::from(quoted));
                Ok(Entry { start, end, id, id_len, shard })
            }
            std::borrow::Cow::Owned(id) => {
                self.escaped.insert(start, id);
                Ok(Entry { start, end, id: start, id_len: ESCAPED, shard })
            }
        }
    }

    /// Writes a document anew with each top-level name once: at its first place, with its last value.
    fn rewrite(&mut self, start: u32, end: u32) -> (u32, u32) {
        let document = self.slice(start, end);
        let mut members: Vec<(&[u8], &[u8])> = Vec::new();
        let mut places = BTreeMap::new();
        for member in json::members(document, 0).into_iter().flatten().flatten() {
            let key = &document[member.start..member.start + member.raw_key.len() + 2];
            let place = *places.entry(member.key()).or_insert(members.len());
            match members.get_mut(place) {
                Some(known) => known.1 = member.value,
                None => members.push((key, member.value)),
            }
        }
        let mut out = vec![b'{'];
        for (i, (key, value)) in members.into_iter().enumerate() {
            if i > 0 {
                out.push(b',');
            }
            out.extend_from_slice(key);
            out.push(b':');
            out.extend_from_slice(value);
        }
        out.push(b'}');
        let place = |n: usize| u32::try_from(n).expect("no longer than the text twice, which fits 32 bits");
        let new = place(self.text.len() + self.rewritten.len());
        self.rewritten.extend_from_slice(&out);
        (new, new + place(out.len()))
    }

    /// How many ids differ; ids of equal hash are compared themselves.
    fn count_distinct(&self, mut hashes: Vec<(u64, usize)>) -> usize {
        hashes.sort_unstable();
        let same_hash = hashes.chunk_by(|a, b| a.0 == b.0);
        same_hash
            .map(|run| match run {
                [_] => 1,
                run => run.iter().map(|(_, i)| self.id(&self.entries[*i])).collect::<BTreeSet<_>>().len(),
            })
            .sum()
    }
}

const OPENING: &[u8] = br#"{"_miroir_shard":""#;

/// Appends a document as one line, the shard's letter as its first member.
fn write_line(out: &mut Vec<u8>, document: &[u8], shard: ShardId) {
    debug_assert!(OPENING[2..].starts_with(SHARD_FIELD.as_bytes()));
    out.extend_from_slice(OPENING);
    out.extend_from_slice(shard.letter().encode_utf8(&mut [0; 4]).as_bytes());
    out.push(b'"');
    let rest = document.get(1..).unwrap_or_default();
    if rest.get(json::skip_space(rest, 0)) != Some(&b'}') {
        out.push(b',');
    }
    let from = out.len();
    out.extend_from_slice(rest);
    // Strings hold no raw line breaks, so every one stands between tokens.
    let breaks: Vec<usize> = memchr2_iter(b'\n', b'\r', rest).collect();
    for at in breaks {
        out[from + at] = b' ';
    }
    out.push(b'\n');
}

/// Cuts an NDJSON body at line ends into pieces of at most `max` bytes; a longer line is a piece of its own.
///
/// A node takes bodies of limited size, and injected letters make bodies longer than the client's.
pub fn pieces(body: &[u8], max: usize) -> impl Iterator<Item = &[u8]> {
    let mut rest = body;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let cut = if rest.len() <= max {
            rest.len()
        } else {
            let inside = memchr::memrchr(b'\n', &rest[..max]).map(|at| at + 1);
            inside.unwrap_or_else(|| memchr_iter(b'\n', rest).next().map_or(rest.len(), |at| at + 1))
        };
        let (piece, after) = rest.split_at(cut);
        rest = after;
        Some(piece)
    })
}
