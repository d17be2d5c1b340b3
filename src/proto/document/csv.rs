//! CSV payloads as NDJSON, with Meilisearch's typed headers.
//!
//! The rule: the same values and the same error texts as on a node; the text made is bounded, because each record repeats
//! the header's names. Must not know: primary keys.

use serde_json::Value;

use super::Format;
use super::error::{DocumentError, cut};
use crate::types::SHARD_FIELD;

#[derive(Clone, Copy)]
enum Kind {
    Text,
    Boolean,
    Number,
}

/// Name and kind that a header states; an unknown kind is part of the name.
fn typed(header: &str) -> (&str, Kind) {
    match header.rsplit_once(':') {
        Some((name, "string")) => (name, Kind::Text),
        Some((name, "boolean")) => (name, Kind::Boolean),
        Some((name, "number")) => (name, Kind::Number),
        _ => (header, Kind::Text),
    }
}

/// One JSON document a line, and where each lies.
pub(super) struct Converted {
    pub(super) text: Vec<u8>,
    pub(super) spans: Vec<(u32, u32)>,
}

/// Reads records and writes documents, at most `limit` bytes of them (and below 4 GiB). Before so many bytes more are held,
/// `hold` is asked.
pub(super) fn to_json<E: From<DocumentError>>(
    input: &[u8],
    delimiter: u8,
    limit: usize,
    hold: &mut impl FnMut(usize) -> Result<(), E>,
) -> Result<Converted, E> {
    let limit = limit.min(u32::MAX as usize);
    let mut reader = csv::ReaderBuilder::new().delimiter(delimiter).from_reader(input);
    let headers = reader.headers().map_err(DocumentError::malformed_csv)?.clone();
    let columns: Vec<_> = headers.iter().map(typed).collect();
    if columns.iter().any(|(name, _)| *name == SHARD_FIELD) {
        return Err(DocumentError::reserved_field().into());
    }
    // Of columns with one name, the first gives the place in the document and the last the value.
    let mut keys: Vec<Vec<u8>> = Vec::new();
    let mut slots = Vec::with_capacity(columns.len());
    let mut known = std::collections::BTreeMap::new();
    for (name, _) in &columns {
        let slot = *known.entry(*name).or_insert(keys.len());
        if slot == keys.len() {
            keys.push(Value::from(*name).to_string().into_bytes());
        }
        slots.push(slot);
    }

    let mut out = Converted { text: Vec::new(), spans: Vec::new() };
    let mut record = csv::StringRecord::new();
    let mut values = vec![Value::Null; keys.len()];
    let mut line = 0_usize;
    let mut document = Vec::new();
    while reader.read_record(&mut record).map_err(DocumentError::malformed_csv)? {
        line += 1;
        for ((field, (_, kind)), slot) in record.iter().zip(&columns).zip(&slots) {
            values[*slot] = value(field, *kind, line)?;
        }
        document.clear();
        for (i, (key, value)) in keys.iter().zip(&values).enumerate() {
            document.push(if i == 0 { b'{' } else { b',' });
            document.extend_from_slice(key);
            document.push(b':');
            serde_json::to_writer(&mut document, value).map_err(|e| DocumentError::malformed(Format::Ndjson, e))?;
        }
        document.extend_from_slice(b"}\n");
        let start = out.text.len();
        let total = start + document.len();
        if total > limit {
            return Err(DocumentError::too_large(limit).into());
        }
        if total > out.text.capacity() {
            let capacity = total.max(out.text.capacity().saturating_mul(2)).min(limit);
            hold(capacity - out.text.capacity())?;
            out.text.reserve_exact(capacity - start);
        }
        out.text.extend_from_slice(&document);
        let end = total - 1;
        match (u32::try_from(start), u32::try_from(end)) {
            (Ok(start), Ok(end)) => out.spans.push((start, end)),
            _ => return Err(DocumentError::too_large(limit).into()),
        }
    }
    Ok(out)
}

/// One field as JSON; an empty one is null.
fn value(field: &str, kind: Kind, line: usize) -> Result<Value, DocumentError> {
    let trimmed = field.trim();
    let shown = || cut(field);
    match kind {
        Kind::Text if field.is_empty() => Ok(Value::Null),
        Kind::Text => Ok(Value::from(field)),
        _ if trimmed.is_empty() => Ok(Value::Null),
        Kind::Boolean => trimmed.parse::<bool>().map(Value::from).map_err(|error| {
            DocumentError::malformed_csv(format!("Error parsing boolean {:?} at line {line}: {error}", shown()))
        }),
        Kind::Number => match trimmed.parse::<i64>() {
            Ok(integer) => Ok(Value::from(integer)),
            // What no JSON number can say (`nan`, `inf`) becomes null.
            Err(_) => trimmed.parse::<f64>().map(Value::from).map_err(|error| {
                DocumentError::malformed_csv(format!("Error parsing number {:?} at line {line}: {error}", shown()))
            }),
        },
    }
}
