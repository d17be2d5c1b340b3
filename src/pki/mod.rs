//! The mesh's own certificate authority: making it, issuing member certificates, and writing both to disk.
//!
//! A member certificate names its member as a DNS name and may be used for both ends of a connection. Must not know:
//! how certificates are checked (`net::tls`), or who asks for one.

mod command;
mod files;
mod issue;

pub use command::{CaCommand, CommandError, InitArgs, IssueArgs, run};
pub use files::{FileError, KEY_MODE, PUBLIC_MODE, write_new};
pub use issue::{
    CA_VALIDITY_DAYS, CaPair, MEMBER_VALIDITY_DAYS, MemberPair, PkiError, Validity, create_ca, issue, issue_within,
};
