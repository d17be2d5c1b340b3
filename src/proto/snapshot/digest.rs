//! Whether two copies of a shard hold the same documents.
//!
//! A node gives a document's fields in an order of its own, so fields are sorted before they are hashed; the hashes of documents
//! are added up, so that their order does not matter either. Vectors are left out: an embedder need not give the same twice. Rule:
//! it finds what went wrong, not what somebody means to hide. Must not know: where documents come from.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use twox_hash::XxHash64;

use crate::types::limits::JSON_DEPTH_MAX;

/// Two hashes of the same, so that nothing differs unnoticed by chance.
pub type Hash = [u64; 2];

/// What a copy holds as it is after one entry.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sum {
    /// After this one.
    pub at: u64,
    /// So many documents.
    pub count: u64,
    /// With these ids.
    pub ids: Hash,
    /// That say this; `None`: they are too many to be looked at while entries wait.
    pub documents: Option<Hash>,
}

impl Sum {
    /// One more document, by its id.
    pub fn add_id(&mut self, id: &str) {
        self.count = self.count.wrapping_add(1);
        add(&mut self.ids, id.as_bytes());
    }

    /// What one more document says, as JSON; `false`: it is none.
    pub fn add_document(&mut self, json: &[u8]) -> bool {
        let Ok(value) = serde_json::from_slice::<Value>(json) else { return false };
        if !value.is_object() {
            return false;
        }
        let mut text = Vec::with_capacity(json.len());
        write(&value, &mut text, 0);
        add(self.documents.get_or_insert_default(), &text);
        true
    }

    /// Whether two copies hold the same, as far as both have looked.
    pub fn is_same(&self, other: &Self) -> bool {
        let said = |a: Option<Hash>, b: Option<Hash>| a.is_none() || b.is_none() || a == b;
        self.at == other.at
            && self.count == other.count
            && self.ids == other.ids
            && said(self.documents, other.documents)
    }
}

fn add(sum: &mut Hash, bytes: &[u8]) {
    for (seed, sum) in (1..).zip(sum) {
        *sum = sum.wrapping_add(XxHash64::oneshot(seed, bytes));
    }
}

/// One text for one value, whatever the order of its fields. What lies deeper than any document may is left out.
fn write(value: &Value, out: &mut Vec<u8>, depth: usize) {
    match value {
        _ if depth > JSON_DEPTH_MAX => {}
        Value::Object(map) => {
            let mut fields: Vec<_> = map.iter().filter(|(name, _)| depth > 0 || *name != "_vectors").collect();
            fields.sort_by_key(|(name, _)| *name);
            out.push(b'{');
            for (name, value) in fields {
                text(&Value::String(name.clone()), out);
                out.push(b':');
                write(value, out, depth + 1);
            }
            out.push(b'}');
        }
        Value::Array(list) => {
            out.push(b'[');
            for value in list {
                write(value, out, depth + 1);
                out.push(b',');
            }
            out.push(b']');
        }
        plain => text(plain, out),
    }
}

fn text(value: &Value, out: &mut Vec<u8>) {
    out.extend_from_slice(value.to_string().as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(documents: &[&str]) -> Sum {
        let mut sum = Sum { at: 3, ..Sum::default() };
        documents.iter().for_each(|document| assert!(sum.add_document(document.as_bytes())));
        sum
    }

    #[test]
    fn neither_the_order_of_documents_nor_of_fields_matters_and_vectors_do_not() {
        let one = sum(&[r#"{"a":{"b":1,"c":[1,2]},"d":"x"}"#, r#"{"a":2}"#]);
        let other = sum(&[r#"{"a":2,"_vectors":{"e":1}}"#, r#"{"d":"x", "a":{"c":[1,2],"b":1}}"#]);
        assert!(one.is_same(&other));
        for different in [
            &[r#"{"a":{"b":1,"c":[2,1]},"d":"x"}"#, r#"{"a":2}"#][..],
            &[r#"{"a":{"b":1,"c":[1,2]},"d":"x"}"#, r#"{"a":"2"}"#],
            &[r#"{"a":2}"#, r#"{"a":2}"#],
            &[r#"{"a":{"b":1,"c":[1,2],"_vectors":1},"d":"x"}"#, r#"{"a":2}"#],
        ] {
            assert!(!one.is_same(&sum(different)), "{different:?}");
        }
        assert!(!Sum::default().add_document(b"[1]") && !Sum::default().add_document(b"{"));
    }

    #[test]
    fn what_one_has_not_looked_at_is_not_compared() {
        let (mut one, mut other) = (Sum::default(), Sum::default());
        ["a", "b"].iter().for_each(|id| one.add_id(id));
        ["b", "a"].iter().for_each(|id| other.add_id(id));
        one.add_document(b"{}");
        assert!(one.is_same(&other) && other.is_same(&one));
        assert!(!one.is_same(&Sum { at: 1, ..one }));
        other.add_id("c");
        assert!(!one.is_same(&other));
    }
}
