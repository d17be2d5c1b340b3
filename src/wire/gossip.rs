//! wire/gossip.
