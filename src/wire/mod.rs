//! Bytes ↔ types: what members say to each other, and how it is encoded.
//!
//! Must not know: sockets, clocks, who answers a call and how.

pub mod codec;
pub mod frame;
pub mod gossip;
pub mod verbs;
