//! How a voter answers: which questions it takes, and what becomes durable with the answer.
//!
//! Rule: a question is for one store and under one list; another store, an older list, or a list without this member, and
//! it is refused as a whole. Must not know: what the asker makes of the answer.

use super::acceptor::{self, Acceptance};
use super::base::Base;
use super::copies::Copies;
use super::effect::{Effect, Notice, Row};
use super::forming;
use super::message::{Header, Item, Refusal};
use crate::types::RecordKey;

/// Whether this member votes on what comes under this header.
pub fn admit(base: &Base, header: &Header) -> Result<(), Refusal> {
    if header.to_store != Some(base.stored.store) {
        return Err(Refusal::OtherStore);
    }
    let Some(list) = &header.list else { return Err(Refusal::NoVoter) };
    if base.stored.list.as_ref().is_some_and(|own| own.number > list.number) {
        return Err(Refusal::OlderList);
    }
    if list.has(&base.me()) { Ok(()) } else { Err(Refusal::NoVoter) }
}

/// Answers as a voter; what the answer says is made durable by the same step.
pub fn vote(base: &mut Base, header: &Header, item: Item) -> Option<Item> {
    let register = |key: &RecordKey| base.stored.registers.get(key);
    let unformed = base.stored.mesh.is_none();
    match item {
        Item::Prepare { round, key, ballot } if !unformed || key.is_mesh() => {
            match acceptor::prepare(register(&key), &key, &ballot) {
                Err(promise) => Some(Item::Higher { round, ballot, promise }),
                Ok(row) => {
                    let accepted = register(&key).and_then(|r| r.accepted.clone());
                    base.persist(row);
                    Some(Item::Promised { round, ballot, accepted })
                }
            }
        }
        Item::Accept { round, key, ballot, record, next } => {
            match acceptor::accept(register(&key), &key, &ballot, &record, next.as_ref()) {
                Err(promise) => Some(Item::Higher { round, ballot, promise }),
                Ok(Acceptance::Again) => Some(Item::Accepted { round, ballot }),
                Ok(Acceptance::Reused) => {
                    base.notice(Notice::Broken { invariant: "a_ballot_has_one_value", key });
                    None
                }
                Ok(Acceptance::New(row)) => {
                    if unformed {
                        let (Some(mesh), Some(list)) = (header.mesh, header.list.clone()) else { return None };
                        if !forming::is_first(header, &key, &record) {
                            return None;
                        }
                        base.persist(Row::Mesh { mesh, made: false });
                        base.persist(Row::List(list));
                    }
                    base.persist(row);
                    base.effects.push_back(Effect::Accepted { key, record });
                    Some(Item::Accepted { round, ballot })
                }
            }
        }
        _ if unformed => None,
        Item::Query { round, key } => {
            let accepted = register(&key).and_then(|r| r.accepted.clone());
            Some(Item::Found { round, accepted })
        }
        Item::Raise { round } => Some(Item::Raised { round }),
        Item::Keys { round, after } => {
            let (keys, more) = acceptor::keys(&base.stored.registers, after.as_ref());
            Some(Item::KeysPage { round, after, keys, more })
        }
        Item::Digest { round, digest, after } => Some(Copies::compare(base, round, digest, after)),
        _ => None,
    }
}
