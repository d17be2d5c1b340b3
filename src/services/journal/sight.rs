//! Who is seen to live, and who reaches whom.
//!
//! Rule: it is a hint. Elections are kept apart by the record, so a picture that is wrong costs time, never a write. Must not
//! know: how probes and gossip work.

use crate::proto::journal::Sight;
use crate::proto::journal::election::Reach;

/// The mesh, as this member sees it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Seen {
    /// The members whose probes are answered, the own one included.
    pub sight: Sight,
    /// The stores and processes of all members that anybody sees.
    pub known: Sight,
    /// Who reaches whom, as each member tells of itself.
    pub reach: Reach,
}
