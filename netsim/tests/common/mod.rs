//! What the tests of the whole mesh share: real processes, and a client that looks at every byte of an answer.
//!
//! Each test file uses its own part of it.

mod harness;

#[allow(unused_imports)]
pub use harness::*;

/// Different in every run, or a matter of one node's disk.
#[allow(dead_code)]
pub const RUN: [&str; 17] = [
    "commitSha",
    "commitDate",
    "processingTimeMs",
    "requestUid",
    "queryUid",
    "enqueuedAt",
    "startedAt",
    "finishedAt",
    "createdAt",
    "updatedAt",
    "duration",
    "taskUid",
    "batchUid",
    "databaseSize",
    "usedDatabaseSize",
    "rawDocumentDbSize",
    "avgDocumentSize",
];
