//! Trials for Miroir: what the binary `netsim` is made of, as a library so that tests can use it.

#![forbid(unsafe_code)]

pub mod heard;
pub mod node;
