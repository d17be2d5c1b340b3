//! How long writes wait when their primary dies, in virtual time.
//!
//! The cores that a failover goes through, put together as the drivers put them together and with the times that a mesh has
//! unless it is configured otherwise: probing ([`super::probe`]), what is seen ([`super::journal::sight`]), turns and elections
//! ([`super::journal::election`]), the record by majority ([`super::ledger`]), replicas ([`super::journal`]), and clients that
//! send again as senders do. Rule: messages and stores take time, and nothing else helps or hinders. Must not know: what happens
//! below a message (connections that are lost and made anew), nodes, the homes of tasks.

mod client;
mod driver;
mod tests;
mod world;
