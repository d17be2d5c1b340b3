//! `journal.sqlite`: the journals of all shards of which this member holds a copy.
//!
//! | file | does |
//! | --- | --- |
//! | `file` | the file with its writer and its readers |
//! | `row` | an entry as a row, compressed, with a hash of itself |
//! | `head` | what is known of one journal beside its entries |
//! | `write` | rows of replicas, whole and in order |
//! | `read` | what a replica begins with, entries, where a part stands |
//! | `repair` | what is left of a journal that is damaged |
//! | `applier` | what appliers have noted, and what became of entries |
//! | `keep` | which journals there are, how large and how old; deleting them |
//! | `space` | pages of the file that hold nothing; giving them back |
//! | `homes` | what homes of tasks have made of their journals |
//!
//! **Hashes.** Each entry carries a hash of its own row, its place in it; they are not chained. A chain would tell a missing
//! or exchanged row as well, but that is seen anyway: numbers run on without a gap up to the last one that the head names, and
//! where each epoch begins is noted apart. So any piece can be read and checked alone, and nothing has to be carried over
//! where a journal is cut, trimmed or begun anew.
//!
//! **Damage.** What SQLite has not committed it undoes itself, so a row that is bad was once told to be durable. Its replica
//! may have confirmed it, and others may have counted on that, whether it is known to be committed here or not. So a damaged
//! journal is never just cut and gone on with: it keeps what stands before the first bad row and is marked to be made anew.
//!
//! Rule: what was told to be durable is read as it was written, or said to be damaged. Must not know: who is primary, what a
//! body says, any clock.

mod applier;
mod file;
mod head;
mod homes;
mod keep;
mod read;
mod repair;
mod row;
mod space;
#[cfg(test)]
mod tests;
mod write;

pub use applier::{ApplierRows, EntryOutcome, StoredApplier};
pub use file::JournalStore;
pub use homes::StoredHome;
pub use keep::Listed;
pub use write::Apply;
