//! A shard's copy, made anew from another member's while writes go on.
//!
//! The learner deletes whatever it has of the shard, and the source notes up to where its node has applied entries. Then come all
//! ids, of one consistent read, and the documents by id. Documents may be as they are behind later entries: the learner applies all
//! entries behind the noted one, and set, merge and delete repeated in order end in the same document. Conditional entries do not,
//! so a read in which the source has applied one is begun again; from the third time on such entries wait for the read. At the end
//! both are compared at one entry.
//!
//! | file | decides |
//! | --- | --- |
//! | [`learner`] | what the learner does next, whatever was lost or went wrong |
//! | [`source`] | for whom a read is under way, whether what was read is of use, what is kept for whom |
//! | [`queue`] | which copies are made next |
//! | [`digest`] | whether two copies hold the same |
//!
//! Must not know: HTTP, SQL, the wire, how entries are applied.

pub mod digest;
pub mod learner;
pub mod queue;
pub mod source;
#[cfg(test)]
mod tests;

pub use digest::Sum;
pub use learner::{Answer, Begun, Effect, Here, Learner, View};
pub use queue::Queue;
pub use source::Source;
