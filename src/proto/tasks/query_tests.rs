//! Queries against what a v1.50.0 node was seen to answer.

use proptest::prelude::*;

use super::filter::{Filter, Span};
use super::kind::{Status, TaskKind};
use super::query::*;
use super::when::When;
use crate::types::{ErrorCode, TaskUid};

fn pairs(text: &str) -> Vec<(String, String)> {
    form_urlencoded::parse(text.as_bytes()).into_owned().collect()
}

fn list(text: &str) -> Result<Query, QueryError> {
    Query::parse(Listing::Tasks, &pairs(text))
}

/// The code and the text behind `Invalid value in parameter ` of a refusal.
fn refused(text: &str) -> (&'static str, String) {
    let error = list(text).expect_err(text);
    let message = error.message.strip_prefix("Invalid value in parameter ").map(str::to_owned);
    (error.code.as_str(), message.unwrap_or(error.message))
}

#[test]
fn numbers_are_refused_in_meilisearchs_words() {
    let number = |name: &str, text: &str| format!("`{name}`: could not parse `{text}` as a positive integer");
    for (sent, code, name, text) in [
        ("limit=-1", "invalid_task_limit", "limit", "-1"),
        ("limit=abc", "invalid_task_limit", "limit", "abc"),
        ("limit=5000000000", "invalid_task_limit", "limit", "5000000000"),
        ("limit=", "invalid_task_limit", "limit", ""),
        ("limit", "invalid_task_limit", "limit", ""),
        ("limit=5.0", "invalid_task_limit", "limit", "5.0"),
        ("limit=%zz", "invalid_task_limit", "limit", "%zz"),
        ("limit=1;from=2", "invalid_task_limit", "limit", "1;from=2"),
        ("from=*", "invalid_task_from", "from", "*"),
        ("from=4294967296", "invalid_task_from", "from", "4294967296"),
        ("limit=2&from=", "invalid_task_from", "from", ""),
        ("uids=a", "invalid_task_uids", "uids", "a"),
        ("uids=-1", "invalid_task_uids", "uids", "-1"),
        ("uids=99999999999", "invalid_task_uids", "uids", "99999999999"),
        ("uids=1,%202", "invalid_task_uids", "uids[1]", " 2"),
        ("uids=+1", "invalid_task_uids", "uids", " 1"),
        ("uids=*,a", "invalid_task_uids", "uids[1]", "a"),
        ("uids=a,*", "invalid_task_uids", "uids[0]", "a"),
        ("uids=,a", "invalid_task_uids", "uids", "a"),
        ("uids=,,a", "invalid_task_uids", "uids", "a"),
        ("uids=1,,,a,b", "invalid_task_uids", "uids[1]", "a"),
        ("canceledBy=0,*,x", "invalid_task_canceled_by", "canceledBy[2]", "x"),
        ("batchUids=x", "invalid_batch_uids", "batchUids", "x"),
    ] {
        assert_eq!(refused(sent), (code, number(name, text)), "{sent}");
    }
}

#[test]
fn flags_words_and_indexes_are_refused_in_meilisearchs_words() {
    for text in ["maybe", "", "TRUE", "1"] {
        let message = format!("`reverse`: could not parse `{text}` as a boolean, expected either `true` or `false`");
        assert_eq!(refused(&format!("reverse={text}")), ("invalid_task_reverse", message));
    }
    let statuses = "Available statuses are `enqueued`, `processing`, `succeeded`, `failed`, `canceled`.";
    for (sent, name, text) in [
        ("statuses=nope", "statuses", "nope"),
        ("statuses=nope,*", "statuses[0]", "nope"),
        ("statuses=*,nope", "statuses[1]", "nope"),
        ("statuses=+failed", "statuses", " failed"),
        ("statuses=cancelled", "statuses", "cancelled"),
    ] {
        let message = format!("`{name}`: `{text}` is not a valid task status. {statuses}");
        assert_eq!(refused(sent), ("invalid_task_statuses", message));
    }
    let types = "`types`: `nope` is not a valid task type. Available types are `documentAdditionOrUpdate`, `documentEdition`, \
                 `documentDeletion`, `settingsUpdate`, `indexCreation`, `indexDeletion`, `indexUpdate`, `indexSwap`, \
                 `taskCancelation`, `taskDeletion`, `dumpCreation`, `snapshotCreation`, `export`, `upgradeDatabase`, \
                 `indexCompaction`, `networkTopologyChange`, `dsrUpdate`, `dsrClear`.";
    assert_eq!(refused("types=nope"), ("invalid_task_types", types.to_owned()));
    let uid = "is not a valid index uid. Index uid can be an integer or a string containing only alphanumeric characters, \
               hyphens (-) and underscores (_), and can not be more than 512 bytes.";
    let long = "x".repeat(401);
    for (sent, name, text) in [
        ("bad+name", "indexUids", "bad name"),
        ("a,bad+name", "indexUids[1]", "bad name"),
        ("*,bad+name", "indexUids[1]", "bad name"),
        ("a*", "indexUids", "a*"),
        ("%ff", "indexUids", "\u{fffd}"),
        (&long, "indexUids", &long),
    ] {
        assert_eq!(refused(&format!("indexUids={sent}")), ("invalid_index_uid", format!("`{name}`: `{text}` {uid}")));
    }
    assert!(list(&format!("indexUids={}", "x".repeat(400))).is_ok());
}

#[test]
fn times_are_refused_in_meilisearchs_words() {
    for (name, code) in [
        ("afterEnqueuedAt", "invalid_task_after_enqueued_at"),
        ("beforeEnqueuedAt", "invalid_task_before_enqueued_at"),
        ("afterStartedAt", "invalid_task_after_started_at"),
        ("beforeStartedAt", "invalid_task_before_started_at"),
        ("afterFinishedAt", "invalid_task_after_finished_at"),
        ("beforeFinishedAt", "invalid_task_before_finished_at"),
    ] {
        let message = format!(
            "`{name}`: `2020-13-01` is an invalid date-time. It should follow the YYYY-MM-DD or RFC 3339 date-time format."
        );
        assert_eq!(refused(&format!("{name}=2020-13-01")), (code, message));
        assert!(list(&format!("{name}=*")).unwrap().filter.is_everything());
    }
}

#[test]
fn a_date_alone_is_its_midnight_and_after_it_the_next_one() {
    let span = list("afterEnqueuedAt=2026-11-20&beforeEnqueuedAt=2026-11-21").unwrap().filter.enqueued;
    let midnight = When::parse("2026-11-21T00:00:00Z");
    assert_eq!(span, Span { after: midnight, before: midnight });
}

#[test]
fn of_several_faults_the_first_is_told() {
    let code = |text| refused(text).0;
    assert_eq!(code("limit=x&from=y"), "invalid_task_limit");
    assert_eq!(code("from=y&limit=x"), "invalid_task_from");
    assert_eq!(code("foo=1&limit=x"), "bad_request");
    assert_eq!(code("limit=x&foo=1"), "invalid_task_limit");
    assert_eq!(code("statuses=nope&types=nope"), "invalid_task_statuses");
    assert_eq!(code("types=nope,nope2&statuses=nope"), "invalid_task_types");
    // Of a parameter sent twice the last counts, at the place of the first.
    assert_eq!(refused("limit=3&from=x&limit=y"), ("invalid_task_limit", refused("limit=y").1));
    assert_eq!(list("limit=x&limit=1").unwrap().limit, 1);
    assert_eq!(list("uids=1&uids=2").unwrap().filter.uids, Some([2].into()));
}

#[test]
fn an_unknown_parameter_is_told_with_all_that_are_known() {
    let known = "expected one of `limit`, `from`, `reverse`, `batchUids`, `uids`, `canceledBy`, `types`, `statuses`, \
                 `indexUids`, `afterEnqueuedAt`, `beforeEnqueuedAt`, `afterStartedAt`, `beforeStartedAt`, \
                 `afterFinishedAt`, `beforeFinishedAt`";
    for (sent, name) in [("foo=1", "foo"), ("=", ""), ("uids[]=1", "uids[]"), ("fo%60o=1", "fo`o"), ("uid=1", "uid")] {
        assert_eq!(refused(sent), ("bad_request", format!("Unknown parameter `{name}`: {known}")));
    }
    let meant = format!("Unknown parameter `limits`: did you mean `limit`? {known}");
    assert_eq!(refused("limits=1"), ("bad_request", meant));
    let error = parse_action(Action::Delete, &pairs("uids=1&limit=1")).unwrap_err();
    let known = "expected one of `uids`, `batchUids`, `canceledBy`, `types`, `statuses`, `indexUids`, `afterEnqueuedAt`, \
                 `beforeEnqueuedAt`, `afterStartedAt`, `beforeStartedAt`, `afterFinishedAt`, `beforeFinishedAt`";
    assert_eq!(error.message, format!("Unknown parameter `limit`: {known}"));
    assert_eq!(error.code, ErrorCode::BadRequest);
    let error = parse_action(Action::Cancel, &pairs("statuse=1")).unwrap_err();
    assert_eq!(error.message, format!("Unknown parameter `statuse`: did you mean `statuses`? {known}"));
}

#[test]
fn what_is_taken() {
    let all = Query::all(Listing::Tasks);
    for same in
        ["", "&&", "reverse=false", "uids=*", "uids=1,*", "types=*,*", "indexUids=a,*", "statuses=*&canceledBy=0,*"]
    {
        assert_eq!(list(same).unwrap(), all, "{same}");
    }
    assert_eq!(
        list("limit=%2B5&from=05&reverse=true").unwrap(),
        Query { limit: 5, from: Some(5), reverse: true, ..all.clone() }
    );
    assert_eq!(list("limit=4294967295").unwrap().limit, 4_294_967_294);
    assert_eq!(list("%6Cimit=%31").unwrap().limit, 1);
    let filter = |text| list(text).unwrap().filter;
    assert_eq!(filter("uids="), Filter { uids: Some([].into()), ..Filter::default() });
    assert_eq!(filter("uids=,"), filter("uids"));
    assert_eq!(filter("uids=1,,01,2"), Filter { uids: Some([1, 2].into()), ..Filter::default() });
    assert_eq!(filter("statuses=FAILED,failed").statuses, Some([Status::Failed].into()));
    let kinds = [TaskKind::DocumentDeletion, TaskKind::SettingsUpdate];
    assert_eq!(filter("types=documentdeletion,settingsUpdate").types, Some(kinds.into()));
    assert_eq!(filter("indexUids=A,b").index_uids, Some(["A".to_owned(), "b".to_owned()].into()));
}

#[test]
fn an_action_needs_a_parameter_and_any_will_do() {
    for (action, verb) in [(Action::Delete, "delete"), (Action::Cancel, "cancel")] {
        let error = parse_action(action, &[]).unwrap_err();
        let message = format!(
            "Query parameters to filter the tasks to {verb} are missing. Available query parameters are: `uids`, `indexUids`, \
             `statuses`, `types`, `canceledBy`, `beforeEnqueuedAt`, `afterEnqueuedAt`, `beforeStartedAt`, `afterStartedAt`, \
             `beforeFinishedAt`, `afterFinishedAt`."
        );
        assert_eq!((error.code, error.message), (ErrorCode::MissingTaskFilters, message));
        for text in ["batchUids=1", "afterEnqueuedAt=*", "indexUids=*", "uids=", "uids"] {
            assert!(parse_action(action, &pairs(text)).is_ok(), "{text}");
        }
    }
    assert_eq!(original_filter("uids=1%2C2&statuses=failed"), "?uids=1%2C2&statuses=failed");
}

#[test]
fn a_number_in_a_path() {
    for (text, uid) in [("0", 0), ("01", 1), ("+1", 1), ("4294967295", u32::MAX)] {
        assert_eq!((task_uid(text), batch_uid(text)), (Ok(TaskUid(uid)), Ok(TaskUid(uid))));
    }
    for text in ["x", "-1", "99999999999", "", "4294967296"] {
        let error = task_uid(text).unwrap_err();
        assert_eq!(error.message, format!("Task uid `{text}` is invalid. It should only contain numeric characters."));
        assert_eq!(error.code, ErrorCode::InvalidTaskUids);
        let error = batch_uid(text).unwrap_err();
        assert_eq!(error.message, format!("Batch uid `{text}` is invalid. It should only contain numeric characters."));
        assert_eq!(error.code, ErrorCode::InvalidBatchUids);
    }
    assert_eq!(not_found(Listing::Tasks, TaskUid(9)).message, "Task `9` not found.");
    assert_eq!(not_found(Listing::Batches, TaskUid(9)).code.as_str(), "batch_not_found");
}

fn joined<T: ToString>(items: impl IntoIterator<Item = T>) -> String {
    items.into_iter().map(|i| i.to_string()).collect::<Vec<_>>().join(",")
}

/// A query as a client would send it.
fn written(query: &Query) -> String {
    let f = &query.filter;
    let mut out = form_urlencoded::Serializer::new(String::new());
    out.append_pair("limit", &query.limit.to_string());
    query.from.map(|from| out.append_pair("from", &from.to_string()));
    out.append_pair("reverse", &query.reverse.to_string());
    f.uids.as_ref().map(|set| out.append_pair("uids", &joined(set)));
    f.batch_uids.as_ref().map(|set| out.append_pair("batchUids", &joined(set)));
    f.canceled_by.as_ref().map(|set| out.append_pair("canceledBy", &joined(set)));
    f.types.as_ref().map(|set| out.append_pair("types", &joined(set.iter().map(|k| k.as_str()))));
    f.statuses.as_ref().map(|set| out.append_pair("statuses", &joined(set.iter().map(|k| k.as_str()))));
    f.index_uids.as_ref().map(|set| out.append_pair("indexUids", &joined(set)));
    for (name, span) in [("Enqueued", f.enqueued), ("Started", f.started), ("Finished", f.finished)] {
        span.after.map(|when| out.append_pair(&format!("after{name}At"), &when.text()));
        span.before.map(|when| out.append_pair(&format!("before{name}At"), &when.text()));
    }
    out.finish()
}

fn span() -> impl Strategy<Value = Span> {
    let when = || prop::option::of((0_i64..4_000_000_000_000_000_000).prop_map(When));
    (when(), when()).prop_map(|(after, before)| Span { after, before })
}

fn numbers() -> impl Strategy<Value = Option<std::collections::BTreeSet<u32>>> {
    prop::option::of(prop::collection::btree_set(any::<u32>(), 0..5))
}

prop_compose! {
    fn filter()(
        (uids, batch_uids, canceled_by) in (numbers(), numbers(), numbers()),
        types in prop::option::of(prop::sample::subsequence(TaskKind::ALL, 0..4)),
        statuses in prop::option::of(prop::sample::subsequence(Status::ALL, 0..4)),
        index_uids in prop::option::of(prop::collection::btree_set("[a-zA-Z0-9_-]{1,8}", 0..3)),
        (enqueued, started, finished) in (span(), span(), span()),
    ) -> Filter {
        let (types, statuses) = (types.map(|t| t.into_iter().collect()), statuses.map(|s| s.into_iter().collect()));
        Filter { uids, batch_uids, canceled_by, types, statuses, index_uids, enqueued, started, finished }
    }
}

proptest! {
    #[test]
    fn a_query_is_read_as_it_was_meant(
        filter in filter(), limit in 0..u32::MAX, from in prop::option::of(any::<u32>()), reverse: bool
    ) {
        let query = Query { listing: Listing::Tasks, filter, limit, from, reverse };
        prop_assert_eq!(list(&written(&query)), Ok(query));
    }

    #[test]
    fn any_text_is_answered(text in ".{0,60}", name in 0_usize..15) {
        let parameter = super::query::LIST_PARAMETERS[name];
        let sent = vec![(parameter.to_owned(), text.clone()), (text, String::new())];
        let _ = Query::parse(Listing::Batches, &sent);
        let _ = parse_action(Action::Cancel, &sent);
    }
}
