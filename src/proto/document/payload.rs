//! A body taken apart into documents.
//!
//! The rule: what is a [`Payload`] is valid JSON through and through, each document an object without the reserved field.
//! No trees are built; documents are positions in the body. Must not know: primary keys, shards.

use std::fmt;

use bytes::Bytes;
use memchr::memmem;
use serde::de::{DeserializeSeed, Deserializer as _, SeqAccess, Visitor};
use serde_json::error::Category;
use serde_json::value::RawValue;

use super::check::{Flaw, through_and_through};
use super::csv;
use super::error::DocumentError;
use crate::proto::json;
use crate::types::SHARD_FIELD;
use crate::types::limits::CALL_BODY_MAX_BYTES;

/// How documents are written in a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// `application/json`: an array of objects, or one object.
    Json,
    /// `application/x-ndjson`: objects one after the other.
    Ndjson,
    /// `text/csv`: a header, then records.
    Csv {
        /// Between fields; an ASCII character.
        delimiter: u8,
    },
}

impl Format {
    /// The name in messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Json => "json",
            Self::Ndjson => "ndjson",
            Self::Csv { .. } => "csv",
        }
    }
}

/// The documents of a request, checked for their form.
#[derive(Debug, Clone)]
pub struct Payload {
    pub(super) text: Bytes,
    /// Start and end of each document in `text`.
    pub(super) spans: Vec<(u32, u32)>,
    pub(super) format: Format,
}

impl Payload {
    /// Takes a decompressed body apart.
    ///
    /// As on a node, an empty array is a payload without documents, and what follows the array is not looked at.
    ///
    /// # Errors
    /// [`DocumentError::Sync`]: `missing_payload`, `malformed_payload`, `miroir_reserved_field`, or `payload_too_large`
    /// for a CSV body that grows beyond [`CALL_BODY_MAX_BYTES`] as JSON (each record repeats the header).
    pub fn parse(body: Bytes, format: Format) -> Result<Self, DocumentError> {
        Self::parse_within(body, format, |_| Ok(()))
    }

    /// As [`Self::parse`]; before so many bytes more are held, `hold` is asked.
    ///
    /// # Errors
    /// As [`Self::parse`], or what `hold` refuses with.
    pub fn parse_within<E: From<DocumentError>>(
        body: Bytes,
        format: Format,
        mut hold: impl FnMut(usize) -> Result<(), E>,
    ) -> Result<Self, E> {
        if body.is_empty() {
            return Err(DocumentError::missing_payload(format.name()).into());
        }
        // Positions are kept in 32 bits.
        if body.len() > CALL_BODY_MAX_BYTES {
            return Err(DocumentError::too_large(CALL_BODY_MAX_BYTES).into());
        }
        let payload = match format {
            Format::Json => Self { spans: json_spans(&body)?, text: body, format },
            Format::Ndjson => Self { spans: ndjson_spans(&body)?, text: body, format },
            Format::Csv { delimiter } => {
                let csv::Converted { text, spans } = csv::to_json(&body, delimiter, CALL_BODY_MAX_BYTES, &mut hold)?;
                hold(size_of_val(&*spans))?;
                return Ok(Self { text: text.into(), spans, format });
            }
        };
        hold(size_of_val(&*payload.spans))?;
        payload.check()?;
        Ok(payload)
    }

    /// How many documents the request has.
    pub fn received(&self) -> usize {
        self.spans.len()
    }

    /// The documents in their order.
    pub fn documents(&self) -> impl Iterator<Item = &[u8]> {
        self.spans.iter().map(|(start, end)| &self.text[*start as usize..*end as usize])
    }

    /// Each document: an object, parsable by a node, without the reserved field.
    fn check(&self) -> Result<(), DocumentError> {
        for (start, end) in &self.spans {
            let document = &self.text[*start as usize..*end as usize];
            if document.first() != Some(&b'{') {
                return Err(DocumentError::not_objects(self.format));
            }
            through_and_through(document).map_err(|flaw| match flaw {
                Flaw::TooDeep(at) => DocumentError::too_deep(self.format, &self.text, *start as usize + at),
                Flaw::Unparsable(error) => DocumentError::malformed(self.format, error),
            })?;
            if names_shard_field(document)? {
                return Err(DocumentError::reserved_field());
            }
        }
        Ok(())
    }
}

/// Whether the object has the reserved field at its top level, however it is spelled.
fn names_shard_field(document: &[u8]) -> Result<bool, DocumentError> {
    // A key reads as the field only if it is spelled so, or with escapes of the form \u.
    if memmem::find(document, SHARD_FIELD.as_bytes()).is_none() && memmem::find(document, b"\\u").is_none() {
        return Ok(false);
    }
    let scan_error = |e| DocumentError::malformed(Format::Json, e);
    for member in json::members(document, 0).map_err(scan_error)? {
        if member.map_err(scan_error)?.is(SHARD_FIELD) {
            return Ok(true);
        }
    }
    Ok(false)
}

fn json_spans(text: &[u8]) -> Result<Vec<(u32, u32)>, DocumentError> {
    let mut spans = Vec::new();
    let mut deserializer = serde_json::Deserializer::from_slice(text);
    match deserializer.deserialize_seq(Spans { text, spans: &mut spans }) {
        Ok(()) => Ok(spans),
        // Valid so far, but no array: an object alone is a list of one.
        Err(e) if e.classify() == Category::Data => {
            if text.get(json::skip_space(text, 0)) != Some(&b'{') {
                return Err(DocumentError::not_objects(Format::Json));
            }
            let raw: &RawValue = serde_json::from_slice(text).map_err(|e| DocumentError::malformed(Format::Json, e))?;
            Ok(vec![span(text, raw)])
        }
        Err(e) => Err(DocumentError::malformed(Format::Json, e)),
    }
}

fn ndjson_spans(text: &[u8]) -> Result<Vec<(u32, u32)>, DocumentError> {
    let values = serde_json::Deserializer::from_slice(text).into_iter::<&RawValue>();
    values.map(|raw| raw.map(|raw| span(text, raw)).map_err(|e| DocumentError::malformed(Format::Ndjson, e))).collect()
}

/// Where a value borrowed from `text` lies in it.
pub(super) fn span(text: &[u8], raw: &RawValue) -> (u32, u32) {
    let start = raw.get().as_ptr().addr() - text.as_ptr().addr();
    let narrow = |n: usize| u32::try_from(n).expect("a body is at most CALL_BODY_MAX_BYTES long");
    (narrow(start), narrow(start + raw.get().len()))
}

const _: () = assert!(CALL_BODY_MAX_BYTES <= 1 << 31, "positions in a body, and in one twice as long, fit 32 bits");

/// Notes where the elements of an array lie.
pub(super) struct Spans<'a> {
    pub(super) text: &'a [u8],
    pub(super) spans: &'a mut Vec<(u32, u32)>,
}

impl<'de> Visitor<'de> for Spans<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a sequence")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        while let Some(raw) = seq.next_element::<&RawValue>()? {
            self.spans.push(span(self.text, raw));
        }
        Ok(())
    }
}

impl<'de> DeserializeSeed<'de> for Spans<'_> {
    type Value = ();

    fn deserialize<D: serde::Deserializer<'de>>(self, d: D) -> Result<(), D::Error> {
        d.deserialize_seq(self)
    }
}
