//! Search: planning, comparing, merging, retrying. Pure.
//!
//! | step | file | decides |
//! | --- | --- | --- |
//! | understand | [`request`], [`query`], [`filter`] | what the mesh must know of a search, what each part is asked, which shards a filter pins |
//! | plan | [`mod@plan`], [`stats`] | which members for which shards |
//! | scatter | [`retry`] | what happens after each answer, refusal, failure or delay |
//! | compare | [`hit`], [`order`], [`value`] | where a hit stands among the hits of other parts |
//! | merge | [`mod@merge`], [`facets`], [`documents`], [`far`], [`facet_search`] | one body out of many, in the bytes that one node would have sent |
//!
//! What the mesh need not change it does not parse: unknown parameters, mistyped ones and filters go to the node as they
//! came, so that the node refuses them in its own words. Must not know: sockets, clocks, HTTP types.

pub mod documents;
pub mod facet_search;
pub mod facets;
pub mod far;
pub mod filter;
pub mod hit;
pub mod merge;
pub mod order;
pub mod plan;
pub mod query;
pub mod request;
pub mod retry;
pub mod stats;
pub mod value;

pub use documents::{DocumentsQuery, merge_documents};
pub use facet_search::{FacetSearchQuery, merge_facet_search};
pub use far::{FarPage, Next};
pub use filter::{pinned_ids, with_shard_filter};
pub use merge::{MergeError, MergeRequest, PartAnswer, keywords_suffice, merge};
pub use plan::{MemberState, Plan, PlanInput, plan};
pub use query::{Page, SearchQuery};
pub use request::{Original, QueryError};
pub use retry::{Action, AskId, Finished, Outcome, Scatter};
pub use stats::{HedgeBudget, MemberStats};
