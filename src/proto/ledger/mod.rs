//! The ledger: named registers that members agree on by majority.
//!
//! CASPaxos (Rystsov, "CASPaxos: Replicated State Machines without logs", 2018), one register a key, with voter lists
//! that change by one, kept promises that save the proposer that wrote last a round trip, and a table of chosen values on
//! every member.
//!
//! | file | decides |
//! | --- | --- |
//! | [`acceptor`] | what a voter may promise and accept |
//! | `votes` | which questions a voter takes |
//! | `round` | when the votes on one key suffice, and for what |
//! | `proposer` | which round of which key comes next; answers, deadlines, back-off |
//! | [`voters`] | who should vote |
//! | `settle` | how one voter list takes over from the one before |
//! | `copies`, `diff` | what this member knows as chosen, whom to tell, and whether it is stale |
//! | `forming`, `recovering` | how a mesh is made, once, and how survivors go on |
//! | `stores` | which stores are older than they were |
//! | `showing` | from when on a process votes |
//! | [`member`] | all of them behind one interface |
//! | [`message`], [`effect`], [`stored`] | what comes in, what goes out, what is durable |
//!
//! The contract of all cores is in [`crate::proto`]. Must not know: what a record means, except the mesh's own.

pub mod acceptor;
mod base;
mod copies;
mod diff;
pub mod effect;
mod forming;
pub mod member;
pub mod message;
mod proposer;
mod recovering;
mod round;
mod settle;
mod showing;
#[cfg(test)]
mod simulated;
pub mod stored;
mod stores;
#[cfg(test)]
mod tests;
pub mod voters;
mod votes;

pub use effect::{
    Answer, Bootstrap, BootstrapMember, Change, Command, Config, Effect, Notice, OpId, Read, Refused, Row,
};
pub use member::Ledger;
pub use message::{Header, Item, Known, Message, MessageError, Process, Sender};
pub use stored::{Register, Stored};
pub use stores::Seen;
