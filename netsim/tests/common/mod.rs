//! What the tests of the whole mesh share: real processes, and a client that looks at every byte of an answer.
//!
//! Each test file uses its own part of it.

mod harness;

#[allow(unused_imports)]
pub use harness::*;
