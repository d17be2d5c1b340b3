//! Every bound in one place, with the relations between them checked at compile time.
//!
//! Must not know: who applies them.

/// Longest index uid that Meilisearch takes.
pub const INDEX_UID_MAX_BYTES: usize = 400;
/// The part of a physical name that comes from the client's uid.
pub const PHYSICAL_UID_PART_MAX_BYTES: usize = 380;
/// Most shards that an index may have.
pub const SHARDS_MAX: u16 = 1_024;
/// Shards of an index unless configured.
pub const SHARDS_DEFAULT: u16 = 64;
/// Longest document id that Meilisearch takes.
pub const DOCUMENT_ID_MAX_BYTES: usize = 511;
/// Largest replicated record, encoded.
pub const RECORD_MAX_BYTES: usize = 1 << 20;
/// Most bytes of settings that an index's record keeps for members that were away.
pub const MISSED_SETTINGS_MAX_BYTES: usize = 256 << 10;
/// Most index names that one mesh keeps.
pub const NAMES_MAX: usize = 5_000;
/// Most members of one mesh.
pub const MEMBERS_MAX: usize = 128;
/// Nesting of JSON that is still read, in documents and in requests.
pub const JSON_DEPTH_MAX: usize = 128;
/// Default limit of a client's body after decompression, as a node's own.
pub const BODY_DEFAULT_MAX_BYTES: usize = 100_000_000;
/// Largest body that one request to a node carries; a node refuses more than 100,000,000 bytes unless configured.
pub const NODE_BODY_MAX_BYTES: usize = 64 << 20;
/// Largest header of one mesh call, encoded.
pub const CALL_HEADER_MAX_BYTES: usize = 2 << 20;
/// Largest body of one mesh call.
pub const CALL_BODY_MAX_BYTES: usize = 512 << 20;
/// Largest sum of the answers of one multi-search; it is held at once.
pub const MULTI_SEARCH_ANSWER_MAX_BYTES: usize = 128 << 20;
/// Largest body of a call with messages of journals: one entry of the largest size, or many small ones.
pub const JOURNAL_ENCODED_MAX_BYTES: usize = BODY_DEFAULT_MAX_BYTES + (2 << 20);
/// Most messages of journals in one call.
pub const JOURNAL_MESSAGES_MAX: usize = 1_024;
/// Most parts of one request that one call brings to a primary.
pub const APPEND_PARTS_MAX: usize = 8_192;
/// Homes of tasks: shards of their reserved index. The home of a task is its number modulo this.
pub const HOMES: u16 = 16;
/// Most bytes of one question to a home, or of its answer, but for one task more.
pub const HOME_CALL_MAX_BYTES: usize = 8 << 20;
/// Largest gossip message.
pub const GOSSIP_MESSAGE_MAX_BYTES: usize = 64 << 10;
/// Largest total of a member's own gossip values.
pub const GOSSIP_OWN_MAX_BYTES: usize = 8 << 10;
/// Longest key of a ledger record.
pub const LEDGER_KEY_MAX_BYTES: usize = 512;
/// Most items of one ledger message.
pub const LEDGER_ITEMS_MAX: usize = 512;
/// Most bytes of keys and values in one ledger message.
pub const LEDGER_MESSAGE_MAX_BYTES: usize = 4 << 20;
/// Largest ledger message, encoded: with ballots, lists and framing.
pub const LEDGER_ENCODED_MAX_BYTES: usize = 6 << 20;
/// Most changes and reads that a member's ledger has under way or queued.
pub const LEDGER_OPS_MAX: usize = 8_192;
/// Most of them for one key.
pub const LEDGER_OPS_PER_KEY_MAX: usize = 256;
/// Most stores of other members whose counts are remembered.
pub const LEDGER_STORES_MAX: usize = 1_024;
/// Most earlier processes that a store remembers and shows.
pub const LEDGER_LINE_MAX: usize = 64;
/// Most voters of one list.
pub const VOTERS_MAX: usize = 5;
/// Largest epoch: the last integer that every JSON reader keeps exact.
pub const EPOCH_MAX: u64 = 1 << 53;
/// Shortest lease that may be configured.
pub const LEASE_TTL_MIN_MS: u64 = 100;
/// Longest lease that may be configured.
pub const LEASE_TTL_MAX_MS: u64 = 600_000;
/// Most scopes that one member watches or holds at a time.
pub const LEASE_SCOPES_MAX: usize = 16_384;
/// Most scopes whose highest epoch one member remembers. None is forgotten, because that would let a stale order in; so this
/// is also how many different scopes, above all names of aliases ever flipped, a mesh leads in its life.
pub const FENCES_MAX: usize = 65_536;
/// Most changes or reads that a core gives to the ledger in one batch.
pub const LEDGER_BATCH_MAX: usize = 512;
/// Most of its own leases that a member gossips.
pub const LEASE_SIGNS_MAX: usize = 64;
/// Finished operations of a scope that stay listed.
pub const OPERATIONS_PAST_MAX: usize = 20;
/// Lines of an operation's history.
pub const OPERATION_HISTORY_MAX: usize = 64;
/// Largest extra state of an operation, as JSON.
pub const OPERATION_EXTRA_MAX_BYTES: usize = 256 << 10;
/// Largest extra state that stays with a finished operation.
pub const OPERATION_PAST_EXTRA_MAX_BYTES: usize = 16 << 10;
/// Longest text of an operation's error.
pub const OPERATION_ERROR_MAX_BYTES: usize = 2_048;
/// Most requests about one scope's operations that wait for the ledger at a time.
pub const OPERATION_REQUESTS_MAX: usize = 32;
/// Longest text of why a job was given back.
pub const JOB_ERROR_MAX_BYTES: usize = 256;
/// Most jobs in one queue.
pub const JOBS_MAX: usize = 1_000;
/// Largest work or cursor of a job, as JSON.
pub const JOB_PART_MAX_BYTES: usize = 4 << 10;
/// Former targets that an alias remembers.
pub const ALIAS_HISTORY_MAX: usize = 5;

const _: () = assert!(LEDGER_MESSAGE_MAX_BYTES > 2 * (RECORD_MAX_BYTES + LEDGER_KEY_MAX_BYTES), "an item always fits");
const _: () = assert!(LEDGER_ENCODED_MAX_BYTES > LEDGER_MESSAGE_MAX_BYTES + LEDGER_ITEMS_MAX * 1024, "ballots fit");
const _: () = assert!(LEDGER_ITEMS_MAX * LEDGER_KEY_MAX_BYTES < LEDGER_MESSAGE_MAX_BYTES, "a page of keys fits");
const _: () = assert!(LEDGER_STORES_MAX > MEMBERS_MAX && VOTERS_MAX <= MEMBERS_MAX);
const _: () = assert!(PHYSICAL_UID_PART_MAX_BYTES + 3 + 8 <= INDEX_UID_MAX_BYTES);
const _: () = assert!(CALL_HEADER_MAX_BYTES > RECORD_MAX_BYTES, "a record travels in a call's header");
const _: () = assert!(SHARDS_DEFAULT <= SHARDS_MAX);
const _: () = assert!(MISSED_SETTINGS_MAX_BYTES * 2 < RECORD_MAX_BYTES, "also with each of their quotes escaped");
const _: () = assert!(GOSSIP_OWN_MAX_BYTES < GOSSIP_MESSAGE_MAX_BYTES);
const _: () = assert!(BODY_DEFAULT_MAX_BYTES < CALL_BODY_MAX_BYTES);
const _: () = assert!(JOURNAL_ENCODED_MAX_BYTES < CALL_BODY_MAX_BYTES);
const _: () = assert!(APPEND_PARTS_MAX >= SHARDS_MAX as usize && APPEND_PARTS_MAX * 64 < CALL_HEADER_MAX_BYTES);
const _: () = assert!(LEASE_SCOPES_MAX < FENCES_MAX, "whatever is held can be fenced");
const _: () = assert!(LEASE_TTL_MAX_MS.checked_mul(1_050).is_some(), "a lease's patience fits microseconds");
