//! What nodes are told instead of a client's settings, and back.
//!
//! Nodes hold a superset of what the client asked for, so that parts of an answer can be merged:
//!
//! | setting | on nodes | why |
//! | --- | --- | --- |
//! | `filterableAttributes` | the reserved field first, then the client's | parts are asked for by shard; the first rule that matches a field counts |
//! | `displayedAttributes` | always all | sort and distinct values of hidden fields are needed to merge; the mesh hides them |
//! | `faceting.maxValuesPerFacet` | raised where facets are ordered by count, and never below the number of shards | a part's most frequent values are not the whole's; documents are counted by shard |
//! | `embedders.*.documentTemplate` | Meilisearch's default without the reserved field | it would be embedded with each document |
//!
//! The rule: [`to_client`] after [`to_node`] shows what the client wrote. What can't be read back from a node, or is needed
//! without asking one, is kept in [`ClientSettings`], in the index record. A value of a wrong type goes through unchanged:
//! the node refuses it in its own words. Must not know: how many nodes there are, or how they agree.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::types::SHARD_FIELD;

/// The client's own values, by setting, as JSON texts; what is absent has Meilisearch's default.
///
/// Keys: `displayedAttributes`, `distinctAttribute`, `faceting`, `pagination` as the client would read them,
/// `embedders`: for each embedder what decides whose document template it has and how long its vectors are, and `geo`:
/// which settings make nodes read places in documents.
pub type ClientSettings = BTreeMap<String, String>;

/// Meilisearch's default of `pagination.maxTotalHits`.
const MAX_TOTAL_HITS: u64 = 1_000;
/// Facet values of a node where the client orders by count: so many times the client's own number …
const COUNT_FACTOR: u64 = 10;
/// … but at least so many …
const COUNT_MIN: u64 = 10_000;
/// … and, unless the client wants more, at most so many.
const COUNT_MAX: u64 = 1_000_000;

/// The template that Meilisearch gives an embedder that names none.
const DEFAULT_TEMPLATE: &str = "{% for field in fields %}{% if field.is_searchable and field.value != nil %}\
    {{ field.name }}: {{ field.value }}\n{% endif %}{% endfor %}";
/// The same without the reserved field.
const NODE_TEMPLATE: &str = "{% for field in fields %}{% if field.is_searchable and field.value != nil \
    and field.name != \"_miroir_shard\" %}{{ field.name }}: {{ field.value }}\n{% endif %}{% endfor %}";

/// A setting names the reserved field.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("The field `{SHARD_FIELD}` is reserved: the setting `{setting}` can't name it.")]
pub struct ReservedField {
    /// The setting's key in the request.
    pub setting: String,
}

/// How a sub-route writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// Replaces the value.
    Put,
    /// Merges into the value.
    Patch,
}

/// One setting: `/indexes/{uid}/settings/{name}`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SubRoute {
    /// The last part of the path.
    pub name: &'static str,
    /// The key in `/indexes/{uid}/settings`.
    pub key: &'static str,
    /// How it is written.
    pub method: Method,
    /// The value of an index whose client never set it, as JSON.
    pub default: &'static str,
}

const fn put(name: &'static str, key: &'static str, default: &'static str) -> SubRoute {
    SubRoute { name, key, method: Method::Put, default }
}

const fn patch(name: &'static str, key: &'static str, default: &'static str) -> SubRoute {
    SubRoute { name, key, method: Method::Patch, default }
}

/// Every setting, in the order in which a node lists them. `chat` and `foreign-keys` belong to experimental features.
pub const SUB_ROUTES: [SubRoute; 20] = [
    put("displayed-attributes", "displayedAttributes", r#"["*"]"#),
    put("searchable-attributes", "searchableAttributes", r#"["*"]"#),
    put("filterable-attributes", "filterableAttributes", "[]"),
    put("sortable-attributes", "sortableAttributes", "[]"),
    put(
        "ranking-rules",
        "rankingRules",
        r#"["words","typo","proximity","attributeRank","sort","wordPosition","exactness"]"#,
    ),
    put("stop-words", "stopWords", "[]"),
    put("non-separator-tokens", "nonSeparatorTokens", "[]"),
    put("separator-tokens", "separatorTokens", "[]"),
    put("dictionary", "dictionary", "[]"),
    put("synonyms", "synonyms", "{}"),
    put("distinct-attribute", "distinctAttribute", "null"),
    put("proximity-precision", "proximityPrecision", r#""byWord""#),
    patch(
        "typo-tolerance",
        "typoTolerance",
        r#"{"enabled":true,"minWordSizeForTypos":{"oneTypo":5,"twoTypos":9},"disableOnWords":[],"disableOnAttributes":[],"disableOnNumbers":false}"#,
    ),
    patch("faceting", "faceting", r#"{"maxValuesPerFacet":100,"sortFacetValuesBy":{"*":"alpha"}}"#),
    patch("pagination", "pagination", r#"{"maxTotalHits":1000}"#),
    patch("embedders", "embedders", "{}"),
    put("search-cutoff-ms", "searchCutoffMs", "null"),
    put("localized-attributes", "localizedAttributes", "null"),
    put("facet-search", "facetSearch", "true"),
    put("prefix-search", "prefixSearch", r#""indexingTime""#),
];

/// The setting of a sub-route.
pub fn sub_route(name: &str) -> Option<&'static SubRoute> {
    SUB_ROUTES.iter().find(|r| r.name == name)
}

/// The patch that resets everything, as `DELETE /indexes/{uid}/settings` does.
pub fn reset_all() -> Map<String, Value> {
    SUB_ROUTES.iter().map(|r| (r.key.to_owned(), Value::Null)).collect()
}

/// The order of a facet's values.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FacetOrder {
    /// By value.
    #[default]
    Alpha,
    /// By the number of documents, most first.
    Count,
}

/// What the client set on the index, as far as searches are concerned. Nodes hold some of it in another form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IndexView {
    /// The client's name of the index, for answers that show it.
    pub uid: String,
    /// `displayedAttributes`; `None` is `["*"]`.
    pub displayed: Option<Vec<String>>,
    /// `distinctAttribute`.
    pub distinct: Option<String>,
    /// `pagination.maxTotalHits`.
    pub max_total_hits: usize,
    /// `faceting.maxValuesPerFacet`.
    pub max_values_per_facet: usize,
    /// The names of `embedders`.
    pub embedders: BTreeSet<String>,
    /// `faceting.sortFacetValuesBy`; the key `*` is always there, for all other facets.
    pub sort_facet_values_by: BTreeMap<String, FacetOrder>,
}

/// The settings key `faceting`, as the client would read it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Faceting {
    max_values_per_facet: u64,
    sort_facet_values_by: BTreeMap<String, FacetOrder>,
}

/// What decides whose document template an embedder has, and how long its vectors are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Embedder {
    source: String,
    /// A node holds a template for it: its source takes one, and it has no fragments instead.
    templated: bool,
    /// The template is the client's.
    own: bool,
    /// The length of its vectors, where the settings alone decide it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    dimensions: Option<u64>,
}

/// Which settings name the fields of places.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct Geo {
    /// `_geo` is in `filterableAttributes`, not as a pattern.
    filterable: bool,
    /// `_geo` is in `sortableAttributes`.
    sortable: bool,
    /// `_geojson` is in `filterableAttributes`, not as a pattern.
    json: bool,
}

impl Default for Faceting {
    fn default() -> Self {
        Self { max_values_per_facet: 100, sort_facet_values_by: default_order() }
    }
}

fn default_order() -> BTreeMap<String, FacetOrder> {
    BTreeMap::from([("*".to_owned(), FacetOrder::Alpha)])
}

/// The kept value of a setting. One that can't be read, which no version of ours wrote, counts as the default.
fn kept<T: for<'de> Deserialize<'de>>(client: &ClientSettings, key: &str) -> Option<T> {
    client.get(key).and_then(|text| serde_json::from_str(text).ok())
}

/// Keeps a value, or nothing if it is the default.
fn keep(client: &mut ClientSettings, key: &str, value: Option<Value>) {
    match value {
        Some(value) => client.insert(key.to_owned(), value.to_string()),
        None => client.remove(key),
    };
}

impl Default for IndexView {
    fn default() -> Self {
        Self::of("", &ClientSettings::new())
    }
}

impl IndexView {
    /// What an index's name and its record's `client_settings` come to.
    pub fn of(uid: &str, client: &ClientSettings) -> Self {
        let size = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
        let faceting: Faceting = kept(client, "faceting").unwrap_or_default();
        let pagination: Option<BTreeMap<String, u64>> = kept(client, "pagination");
        let max_total_hits = pagination.and_then(|p| p.get("maxTotalHits").copied());
        Self {
            uid: uid.to_owned(),
            displayed: kept(client, "displayedAttributes"),
            distinct: kept(client, "distinctAttribute"),
            max_total_hits: size(max_total_hits.unwrap_or(MAX_TOTAL_HITS)),
            max_values_per_facet: size(faceting.max_values_per_facet),
            embedders: kept::<BTreeMap<String, Embedder>>(client, "embedders")
                .unwrap_or_default()
                .into_keys()
                .collect(),
            sort_facet_values_by: faceting.sort_facet_values_by,
        }
    }

    /// The order of the values of one facet.
    pub fn facet_order(&self, facet: &str) -> FacetOrder {
        let by = &self.sort_facet_values_by;
        by.get(facet).or_else(|| by.get("*")).copied().unwrap_or_default()
    }

    /// Whether a client may see this attribute: it, or one that it lies in, is displayed.
    pub fn shows(&self, attribute: &str) -> bool {
        match &self.displayed {
            None => attribute != SHARD_FIELD,
            Some(list) => list.iter().any(|d| d == "*" || is_within(attribute, d)),
        }
    }
}

/// What the client set on the index, as far as it decides which documents nodes refuse.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DocumentView {
    /// Nodes read `_geo`.
    pub geo: bool,
    /// Nodes read `_geojson`.
    pub geojson: bool,
    /// The index's embedders, and how long the vectors of each are, where the settings alone decide it.
    pub embedders: BTreeMap<String, Option<usize>>,
}

impl DocumentView {
    /// What a record's `client_settings` come to.
    pub fn of(client: &ClientSettings) -> Self {
        let geo: Geo = kept(client, "geo").unwrap_or_default();
        let embedders: BTreeMap<String, Embedder> = kept(client, "embedders").unwrap_or_default();
        let dimensions = |e: Embedder| e.dimensions.and_then(|n| usize::try_from(n).ok());
        Self {
            geo: geo.filterable || geo.sortable,
            geojson: geo.json,
            embedders: embedders.into_iter().map(|(name, e)| (name, dimensions(e))).collect(),
        }
    }
}

/// Whether `attribute` is `outer`, or nested in it.
pub fn is_within(attribute: &str, outer: &str) -> bool {
    attribute.strip_prefix(outer).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

/// The settings that a new index gets on every node, before the client has set any.
pub fn initial(shards: u16) -> Map<String, Value> {
    let faceting = Faceting::default();
    let mut map = Map::new();
    map.insert("filterableAttributes".to_owned(), json!([SHARD_FIELD]));
    map.insert("displayedAttributes".to_owned(), json!(["*"]));
    map.insert("faceting".to_owned(), json!({ "maxValuesPerFacet": node_facet_values(&faceting, shards) }));
    map
}

/// Facet values that a node must list so that the client's own can be worked out from all parts.
fn node_facet_values(client: &Faceting, shards: u16) -> u64 {
    let own = client.max_values_per_facet;
    let by_count = client.sort_facet_values_by.values().any(|o| *o == FacetOrder::Count);
    let wanted = if by_count { own.saturating_mul(COUNT_FACTOR).clamp(COUNT_MIN, COUNT_MAX) } else { own };
    wanted.max(own).max(u64::from(shards))
}

/// Turns a client's patch into the nodes' patch, and the client's own values before it into those after it.
///
/// A patch that the nodes refuse must leave the client's values as they were.
///
/// # Errors
/// [`ReservedField`] if the patch names the reserved field anywhere.
pub fn to_node(
    patch: &Map<String, Value>,
    before: &ClientSettings,
    shards: u16,
) -> Result<(Map<String, Value>, ClientSettings), ReservedField> {
    let mut node = patch.clone();
    let mut after = before.clone();
    for (key, value) in &mut node {
        if key.contains(SHARD_FIELD) || names_shard_field(value) {
            return Err(ReservedField { setting: key.clone() });
        }
        keep_geo(key, value, &mut after);
        match key.as_str() {
            "filterableAttributes" => filterable_to_node(value),
            "displayedAttributes" => displayed_to_node(value, &mut after),
            "faceting" => faceting_to_node(value, &mut after, shards),
            "embedders" => embedders_to_node(value, &mut after),
            "distinctAttribute" if value.is_string() || value.is_null() => {
                keep(&mut after, key, Some(value.clone()).filter(Value::is_string));
            }
            "pagination" => keep_pagination(value, &mut after),
            _ => {}
        }
    }
    Ok((node, after))
}

/// Puts settings read from a node back to the client's view; keys that are not there are not added.
pub fn to_client(node: &mut Map<String, Value>, client: &ClientSettings) {
    for (key, value) in node {
        match key.as_str() {
            "filterableAttributes" => {
                if let Value::Array(list) = value {
                    list.retain(|item| item != SHARD_FIELD);
                }
            }
            "displayedAttributes" => {
                *value = kept::<Value>(client, "displayedAttributes").unwrap_or_else(|| json!(["*"]));
            }
            "faceting" => {
                let own: Faceting = kept(client, "faceting").unwrap_or_default();
                if let Some(max) = value.get_mut("maxValuesPerFacet") {
                    *max = own.max_values_per_facet.into();
                }
            }
            "embedders" => {
                let embedders = value.as_object_mut().into_iter().flat_map(|m| m.values_mut());
                for template in embedders.filter_map(|e| e.get_mut("documentTemplate")) {
                    if template == NODE_TEMPLATE {
                        *template = DEFAULT_TEMPLATE.into();
                    }
                }
            }
            _ => {}
        }
    }
}

/// A node's message about the setting `key` in `PATCH …/settings`, as the setting's own route would word it.
pub fn route_error_text(text: &str, key: &str) -> String {
    // What a node finds out after it has read the body, it says of the whole settings on every route.
    if text.starts_with("`.") {
        return text.to_owned();
    }
    let text = text.replace(&format!(" inside `.{key}`"), "").replace(&format!(" at `.{key}`"), "");
    text.replace(&format!("`.{key}."), "`.").replace(&format!("`.{key}["), "`[")
}

/// Whether any text in the value, key or not, holds the reserved name.
fn names_shard_field(value: &Value) -> bool {
    match value {
        Value::String(text) => text.contains(SHARD_FIELD),
        Value::Array(list) => list.iter().any(names_shard_field),
        Value::Object(map) => map.iter().any(|(k, v)| k.contains(SHARD_FIELD) || names_shard_field(v)),
        _ => false,
    }
}

fn filterable_to_node(value: &mut Value) {
    match value {
        Value::Null => *value = json!([SHARD_FIELD]),
        Value::Array(list) => list.insert(0, SHARD_FIELD.into()),
        _ => {}
    }
}

fn displayed_to_node(value: &mut Value, after: &mut ClientSettings) {
    if value.is_null() {
        after.remove("displayedAttributes");
    } else {
        let Some(list) = value.as_array() else { return };
        let Some(names) = list.iter().map(Value::as_str).collect::<Option<Vec<_>>>() else { return };
        // As a node reads it back: each name once, and all means all.
        let mut own: Vec<&str> = Vec::new();
        for name in &names {
            if !own.contains(name) {
                own.push(name);
            }
        }
        let all = own.contains(&"*");
        keep(after, "displayedAttributes", (!all).then(|| json!(own)));
    }
    *value = json!(["*"]);
}

/// The client's faceting after this patch, if the patch is well formed.
fn faceting_after(value: &Value, mut own: Faceting) -> Option<Faceting> {
    let patch = match value {
        Value::Null => return Some(Faceting::default()),
        Value::Object(patch) => patch,
        _ => return None,
    };
    for (key, value) in patch {
        match (key.as_str(), value) {
            ("maxValuesPerFacet", Value::Null) => own.max_values_per_facet = Faceting::default().max_values_per_facet,
            ("maxValuesPerFacet", value) => own.max_values_per_facet = value.as_u64()?,
            ("sortFacetValuesBy", Value::Null) => own.sort_facet_values_by = default_order(),
            ("sortFacetValuesBy", value) => {
                let given = BTreeMap::<String, FacetOrder>::deserialize(value).ok()?;
                own.sort_facet_values_by = default_order();
                own.sort_facet_values_by.extend(given);
            }
            _ => return None,
        }
    }
    Some(own)
}

fn faceting_to_node(value: &mut Value, after: &mut ClientSettings, shards: u16) {
    let before: Faceting = kept(after, "faceting").unwrap_or_default();
    let Some(own) = faceting_after(value, before) else { return };
    *value = json!({
        "maxValuesPerFacet": node_facet_values(&own, shards),
        "sortFacetValuesBy": own.sort_facet_values_by,
    });
    let default = own == Faceting::default();
    keep(after, "faceting", (!default).then(|| json!(own)));
}

fn keep_pagination(value: &Value, after: &mut ClientSettings) {
    match (value, value.get("maxTotalHits")) {
        (Value::Null, _) | (_, Some(Value::Null)) => keep(after, "pagination", None),
        (_, Some(max)) if max.as_u64().is_some_and(|m| m > 0) => {
            let own = (max.as_u64() != Some(MAX_TOTAL_HITS)).then(|| json!({ "maxTotalHits": max }));
            keep(after, "pagination", own);
        }
        _ => {}
    }
}

/// Keeps whether the client names the fields of places.
fn keep_geo(key: &str, value: &Value, after: &mut ClientSettings) {
    let names = |name: &str| match value {
        Value::Null => Some(false),
        Value::Array(list) => Some(list.iter().any(|item| item == name)),
        _ => None,
    };
    let (Some(point), Some(json)) = (names("_geo"), names("_geojson")) else { return };
    let mut geo: Geo = kept(after, "geo").unwrap_or_default();
    match key {
        "filterableAttributes" => (geo.filterable, geo.json) = (point, json),
        "sortableAttributes" => geo.sortable = point,
        _ => return,
    }
    let default = geo == Geo::default();
    keep(after, "geo", (!default).then(|| json!(geo)));
}

/// Gives embedders that would get the default template ours, and notes whose template each has.
fn embedders_to_node(value: &mut Value, after: &mut ClientSettings) {
    let mut own: BTreeMap<String, Embedder> = kept(after, "embedders").unwrap_or_default();
    match value {
        Value::Null => own.clear(),
        Value::Object(patch) => {
            for (name, embedder) in patch {
                match embedder {
                    Value::Null => {
                        own.remove(name);
                    }
                    Value::Object(embedder) => {
                        let new = embedder_to_node(embedder, own.get(name));
                        own.insert(name.clone(), new);
                    }
                    _ => {}
                }
            }
        }
        _ => return,
    }
    keep(after, "embedders", (!own.is_empty()).then(|| json!(own)));
}

fn embedder_to_node(patch: &mut Map<String, Value>, before: Option<&Embedder>) -> Embedder {
    let source = match patch.get("source") {
        Some(Value::String(source)) => source.clone(),
        Some(Value::Null) => "openAi".to_owned(),
        _ => before.map_or("openAi", |b| b.source.as_str()).to_owned(),
    };
    let takes_template = matches!(source.as_str(), "openAi" | "huggingFace" | "ollama" | "rest");
    let fragments = |before: bool| {
        let given = ["indexingFragments", "searchFragments"].map(|key| patch.get(key));
        let has = |v: &Value| v.as_object().is_some_and(|m| !m.is_empty());
        if given == [None, None] { before } else { given.into_iter().flatten().any(has) }
    };
    let held_fragments = before.is_some_and(|b| b.source == "rest" && !b.templated);
    let templated = takes_template && !(source == "rest" && fragments(held_fragments));
    // A node keeps a template through a change of source, if both take one.
    let held = before.filter(|b| b.templated);
    let own = match patch.get("documentTemplate") {
        None => held.is_some_and(|b| b.own),
        Some(given) => !given.is_null(),
    };
    if templated && !own && (held.is_none() || patch.contains_key("documentTemplate")) {
        patch.insert("documentTemplate".to_owned(), NODE_TEMPLATE.into());
    }
    // Other sources have a length of their own, which may stand in another setting or in none.
    let decided = matches!(source.as_str(), "userProvided" | "ollama" | "rest");
    let dimensions = match patch.get("dimensions") {
        None => before.filter(|b| b.source == source).and_then(|b| b.dimensions),
        Some(given) => given.as_u64(),
    };
    Embedder { source, templated, own: templated && own, dimensions: dimensions.filter(|_| decided) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn object(value: Value) -> Map<String, Value> {
        match value {
            Value::Object(map) => map,
            other => panic!("{other} is no object"),
        }
    }

    fn default_of(key: &str) -> Value {
        serde_json::from_str(SUB_ROUTES.iter().find(|r| r.key == key).unwrap().default).unwrap()
    }

    /// What a node does with a patch, as far as these settings go.
    fn node_takes_for_test(node: &mut Map<String, Value>, patch: &Map<String, Value>) {
        for (key, value) in patch {
            if value.is_null() {
                node.insert(key.clone(), default_of(key));
            } else if key == "faceting" || key == "pagination" || key == "embedders" {
                let held = node[key.as_str()].as_object_mut().unwrap();
                for (k, v) in value.as_object().unwrap() {
                    held.insert(k.clone(), v.clone());
                }
            } else {
                node.insert(key.clone(), value.clone());
            }
        }
    }

    struct Mesh {
        node: Map<String, Value>,
        client: ClientSettings,
    }

    impl Mesh {
        fn new(shards: u16) -> Self {
            let mut node = SUB_ROUTES.iter().map(|r| (r.key.to_owned(), default_of(r.key))).collect();
            node_takes_for_test(&mut node, &initial(shards));
            Self { node, client: ClientSettings::new() }
        }

        fn patch(&mut self, patch: Value, shards: u16) -> &mut Self {
            let (patch, client) = to_node(&object(patch), &self.client, shards).unwrap();
            node_takes_for_test(&mut self.node, &patch);
            self.client = client;
            self
        }

        fn seen(&self) -> Map<String, Value> {
            let mut seen = self.node.clone();
            to_client(&mut seen, &self.client);
            seen
        }
    }

    #[test]
    fn a_new_index_looks_like_a_new_index() {
        for (key, value) in Mesh::new(1024).seen() {
            assert_eq!(value, default_of(&key), "{key}");
        }
    }

    #[test]
    fn the_shard_stays_filterable_whatever_the_client_does() {
        let mut mesh = Mesh::new(64);
        for (client, node) in [
            (json!(["a", {"attributePatterns": ["*"]}]), json!([SHARD_FIELD, "a", {"attributePatterns": ["*"]}])),
            (json!([]), json!([SHARD_FIELD])),
            (Value::Null, json!([SHARD_FIELD])),
        ] {
            mesh.patch(json!({ "filterableAttributes": client }), 64);
            assert_eq!(mesh.node["filterableAttributes"], node);
        }
        mesh.patch(reset_all().into(), 64);
        assert_eq!(mesh.node["filterableAttributes"], json!([SHARD_FIELD]));
        assert_eq!(mesh.node["displayedAttributes"], json!(["*"]));
    }

    #[test]
    fn facets_by_count_get_longer_lists_on_nodes() {
        let mut mesh = Mesh::new(64);
        let nodes = |m: &Mesh| m.node["faceting"]["maxValuesPerFacet"].as_u64().unwrap();
        assert_eq!(nodes(&mesh), 100);
        assert_eq!(nodes(Mesh::new(64).patch(json!({"faceting": {"maxValuesPerFacet": 5}}), 64)), 64);
        mesh.patch(json!({"faceting": {"sortFacetValuesBy": {"a": "count"}}}), 64);
        assert_eq!(nodes(&mesh), 10_000);
        mesh.patch(json!({"faceting": {"maxValuesPerFacet": 3000}}), 64);
        assert_eq!(nodes(&mesh), 30_000);
        assert_eq!(mesh.seen()["faceting"]["maxValuesPerFacet"], 3000);
        assert_eq!(IndexView::of("i", &mesh.client).facet_order("a"), FacetOrder::Count);
        assert_eq!(IndexView::of("i", &mesh.client).facet_order("b"), FacetOrder::Alpha);
        mesh.patch(json!({"faceting": {"sortFacetValuesBy": {"b": "count"}, "maxValuesPerFacet": u64::MAX}}), 64);
        assert_eq!(nodes(&mesh), u64::MAX);
        assert_eq!(IndexView::of("i", &mesh.client).facet_order("a"), FacetOrder::Alpha);
        mesh.patch(json!({"faceting": null}), 64);
        assert_eq!((nodes(&mesh), mesh.client.len()), (100, 0));
    }

    #[test]
    fn what_is_wrong_goes_to_the_node_as_it_is() {
        let before = ClientSettings::from([("faceting".to_owned(), r#"{"maxValuesPerFacet":7}"#.to_owned())]);
        for wrong in [
            json!({"filterableAttributes": "a"}),
            json!({"displayedAttributes": ["a", 1]}),
            json!({"displayedAttributes": {}}),
            json!({"faceting": {"maxValuesPerFacet": -1}}),
            json!({"faceting": {"maxValuesPerFacet": 2.0}}),
            json!({"faceting": {"sortFacetValuesBy": {"a": "up"}}}),
            json!({"faceting": {"x": 1}}),
            json!({"faceting": []}),
            json!({"pagination": {"maxTotalHits": 0}}),
            json!({"distinctAttribute": 3}),
            json!({"embedders": 1}),
            json!({"nope": 1}),
        ] {
            let patch = object(wrong);
            assert_eq!(to_node(&patch, &before, 64).unwrap(), (patch.clone(), before.clone()));
        }
    }

    #[test]
    fn what_makes_nodes_read_documents_is_kept() {
        let mut mesh = Mesh::new(64);
        let view = |mesh: &Mesh| DocumentView::of(&mesh.client);
        assert_eq!(view(&mesh), DocumentView::default());
        // A pattern does not turn it on.
        mesh.patch(
            json!({"filterableAttributes": [{"attributePatterns": ["_geo*"]}], "sortableAttributes": ["a"]}),
            64,
        );
        assert_eq!((view(&mesh), mesh.client.len()), (DocumentView::default(), 0));
        mesh.patch(
            json!({"filterableAttributes": ["_geojson", "_geo"], "sortableAttributes": ["_geo", "_geojson"]}),
            64,
        );
        assert!(view(&mesh).geo && view(&mesh).geojson);
        mesh.patch(json!({"filterableAttributes": ["a"]}), 64);
        assert!(view(&mesh).geo && !view(&mesh).geojson);
        mesh.patch(json!({ "sortableAttributes": null }), 64);
        assert_eq!((view(&mesh), mesh.client.len()), (DocumentView::default(), 0));

        let lengths = |mesh: &Mesh| view(mesh).embedders.into_iter().collect::<Vec<_>>();
        mesh.patch(
            json!({"embedders": {"u": {"source": "userProvided", "dimensions": 3}, "o": {"dimensions": 4}}}),
            64,
        );
        assert_eq!(lengths(&mesh), [("o".to_owned(), None), ("u".to_owned(), Some(3))]);
        mesh.patch(
            json!({"embedders": {"u": {"binaryQuantized": true}, "o": {"source": "rest", "dimensions": 4}}}),
            64,
        );
        assert_eq!(lengths(&mesh), [("o".to_owned(), Some(4)), ("u".to_owned(), Some(3))]);
        mesh.patch(json!({"embedders": {"u": {"source": "ollama"}, "o": {"dimensions": null}}}), 64);
        assert_eq!(lengths(&mesh), [("o".to_owned(), None), ("u".to_owned(), None)]);
        // Kept by a version that knew nothing of lengths.
        let old = r#"{"u":{"source":"userProvided","templated":false,"own":false}}"#;
        let old = ClientSettings::from([("embedders".to_owned(), old.to_owned())]);
        assert_eq!(DocumentView::of(&old).embedders, BTreeMap::from([("u".to_owned(), None)]));
    }

    #[test]
    fn the_reserved_field_is_refused_in_every_setting() {
        for route in &SUB_ROUTES {
            for value in [json!(SHARD_FIELD), json!([[{"a": "x _miroir_shard.y"}]]), json!({"a": {"_miroir_shard": 1}})]
            {
                let patch = object(json!({ route.key: value }));
                let error = to_node(&patch, &ClientSettings::new(), 64).unwrap_err();
                assert_eq!(error, ReservedField { setting: route.key.to_owned() });
            }
        }
    }

    #[test]
    fn embedders_do_not_embed_the_shard_and_clients_do_not_see_it() {
        let mut mesh = Mesh::new(64);
        mesh.patch(json!({"embedders": {"e": {"source": "rest"}, "own": {"documentTemplate": "{{doc.x}}"}}}), 64);
        assert_eq!(mesh.node["embedders"]["e"]["documentTemplate"], NODE_TEMPLATE);
        assert_eq!(mesh.seen()["embedders"]["e"]["documentTemplate"], DEFAULT_TEMPLATE);
        assert_eq!(mesh.seen()["embedders"]["own"]["documentTemplate"], "{{doc.x}}");
        let patch = |mesh: &Mesh, patch| to_node(&object(patch), &mesh.client, 64).unwrap().0;
        // As on a node, a template outlives a change of source; null falls back to the default.
        for kept in [json!({"apiKey": "k"}), json!({"source": "ollama", "model": "m"}), json!({})] {
            let kept = json!({"embedders": {"own": kept, "e": {"url": "u"}}});
            assert_eq!(patch(&mesh, kept.clone()), object(kept));
        }
        let node = patch(&mesh, json!({"embedders": {"own": {"documentTemplate": null}}}));
        assert_eq!(node["embedders"]["own"]["documentTemplate"], NODE_TEMPLATE);
        // Embedders without a template get none, and the default once they take one.
        for none in [
            json!({"source": "userProvided", "dimensions": 3}),
            json!({"source": "rest", "indexingFragments": {"a": {"value": "{{doc.a}}"}}}),
        ] {
            let mut other = Mesh::new(64);
            let given = json!({"embedders": {"own": none}});
            assert_eq!(patch(&other, given.clone()), object(given.clone()));
            other.patch(given, 64);
            let node = patch(&other, json!({"embedders": {"own": {"source": "rest", "indexingFragments": null}}}));
            assert_eq!(node["embedders"]["own"]["documentTemplate"], NODE_TEMPLATE);
        }
        mesh.patch(json!({"embedders": {"own": null, "e": null}}), 64);
        assert!(mesh.client.is_empty());
        assert!(NODE_TEMPLATE.contains(SHARD_FIELD));
    }

    #[test]
    fn displayed_fields_are_kept_as_a_node_would_read_them() {
        let mut mesh = Mesh::new(64);
        for (given, seen) in [
            (json!(["b", "a", "b"]), json!(["b", "a"])),
            (json!(["*", "a"]), json!(["*"])),
            (json!([]), json!([])),
            (Value::Null, json!(["*"])),
        ] {
            mesh.patch(json!({ "displayedAttributes": given }), 64);
            assert_eq!(mesh.seen()["displayedAttributes"], seen);
            assert_eq!(mesh.node["displayedAttributes"], json!(["*"]));
        }
        mesh.patch(json!({"displayedAttributes": ["a", "b.c"]}), 64);
        let view = IndexView::of("i", &mesh.client);
        assert_eq!(
            ["a", "a.x", "ab", "b", "b.c", "b.c.d"].map(|f| view.shows(f)),
            [true, true, false, false, true, true]
        );
    }

    #[test]
    fn errors_read_as_those_of_the_settings_own_route() {
        for (text, key, expected) in [
            (
                "Invalid value type at `.displayedAttributes[0]`: expected a string",
                "displayedAttributes",
                "Invalid value type at `[0]`: expected a string",
            ),
            (
                "Invalid value type at `.distinctAttribute`: expected",
                "distinctAttribute",
                "Invalid value type: expected",
            ),
            (
                "Invalid value type at `.faceting.maxValuesPerFacet`: expected",
                "faceting",
                "Invalid value type at `.maxValuesPerFacet`: expected",
            ),
            ("Unknown field `x` inside `.faceting`: expected one of", "faceting", "Unknown field `x`: expected one of"),
            ("`.embedders.e`: Missing field `dimensions`", "embedders", "`.embedders.e`: Missing field `dimensions`"),
        ] {
            assert_eq!(route_error_text(text, key), expected);
        }
    }

    fn any_patch() -> impl Strategy<Value = Value> {
        let names = || prop::collection::vec("[a-c*]{1,2}", 0..4);
        let orders = prop::collection::btree_map("[ab*]", prop::sample::select(vec!["alpha", "count"]), 0..3);
        let null = || Just(Value::Null);
        prop_oneof![
            prop_oneof![names().prop_map(|n| json!(n)), null()].prop_map(|v| json!({ "filterableAttributes": v })),
            prop_oneof![names().prop_map(|n| json!(n)), null()].prop_map(|v| json!({ "displayedAttributes": v })),
            prop_oneof![any::<u32>().prop_map(|n| json!({ "maxValuesPerFacet": n })), null()]
                .prop_map(|v| json!({ "faceting": v })),
            orders.prop_map(|o| json!({ "faceting": { "sortFacetValuesBy": o } })),
            Just(json!({"faceting": {"maxValuesPerFacet": null, "sortFacetValuesBy": null}})),
            prop_oneof![(1..9999_u32).prop_map(|n| json!({ "maxTotalHits": n })), null()]
                .prop_map(|v| json!({ "pagination": v })),
            prop_oneof![Just(json!("a")), null()].prop_map(|v| json!({ "distinctAttribute": v })),
            names().prop_map(|n| json!({ "sortableAttributes": n, "searchableAttributes": ["a"] })),
        ]
    }

    /// What one node without a mesh would show.
    fn plain_for_test(seen: &mut Map<String, Value>, patch: &Map<String, Value>) {
        let mut patch = patch.clone();
        if let Some(Value::Array(list)) = patch.get_mut("displayedAttributes") {
            let mut once = Vec::new();
            list.iter().for_each(|v| {
                if !once.contains(v) {
                    once.push(v.clone())
                }
            });
            *list = if once.contains(&json!("*")) { vec![json!("*")] } else { once };
        }
        if let Some(Value::Object(faceting)) = patch.get_mut("faceting") {
            for (key, value) in faceting {
                match (key.as_str(), &value) {
                    (_, Value::Null) => *value = default_of("faceting")[key.as_str()].clone(),
                    ("sortFacetValuesBy", Value::Object(given)) => {
                        let mut all = default_of("faceting")["sortFacetValuesBy"].as_object().unwrap().clone();
                        all.extend(given.clone());
                        *value = all.into();
                    }
                    _ => {}
                }
            }
        }
        node_takes_for_test(seen, &patch);
    }

    proptest! {
        #[test]
        fn clients_see_what_one_node_would_show(patches in prop::collection::vec(any_patch(), 0..8), shards in 1..1024_u16) {
            let mut mesh = Mesh::new(shards);
            let mut plain: Map<_, _> = SUB_ROUTES.iter().map(|r| (r.key.to_owned(), default_of(r.key))).collect();
            for patch in patches {
                plain_for_test(&mut plain, patch.as_object().unwrap());
                mesh.patch(patch, shards);
                prop_assert_eq!(Value::Object(mesh.seen()), Value::Object(plain.clone()));
                let view = IndexView::of("i", &mesh.client);
                prop_assert_eq!(json!(view.distinct), plain["distinctAttribute"].clone());
                prop_assert_eq!(json!(view.max_total_hits), plain["pagination"]["maxTotalHits"].clone());
                prop_assert_eq!(json!(view.sort_facet_values_by), plain["faceting"]["sortFacetValuesBy"].clone());
                prop_assert_eq!(json!(view.displayed.unwrap_or(vec!["*".into()])), plain["displayedAttributes"].clone());
                prop_assert!(mesh.node["faceting"]["maxValuesPerFacet"].as_u64() >= Some(u64::from(shards)));
                prop_assert_eq!(&mesh.node["filterableAttributes"][0], SHARD_FIELD);
            }
        }
    }
}
