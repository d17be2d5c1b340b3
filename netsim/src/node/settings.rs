//! Index settings: what a client may send, how it is normalised and merged, and the compiled form that indexing and
//! search read.
//!
//! Rule: what is read back is what Meilisearch gives back: defaults filled in, sets sorted, lists in their order. Must
//! not know: HTTP, the store, documents.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};

use super::error::{ApiError, Result};
use super::params::{Fields, string_list, wrong_type};

/// One setting: its name in JSON, in URLs, whether its route takes PATCH (else PUT), and the code of its errors.
pub struct Key {
    /// For example `stopWords`.
    pub name: &'static str,
    /// For example `stop-words`.
    pub route: &'static str,
    /// Written with PATCH and merged, not PUT and replaced.
    pub patch: bool,
    /// For example `invalid_settings_stop_words`.
    pub code: &'static str,
    /// Shown in answers (the others need an experimental feature).
    pub shown: bool,
}

const fn key(name: &'static str, route: &'static str, patch: bool, code: &'static str, shown: bool) -> Key {
    Key { name, route, patch, code, shown }
}

/// All settings in the order of Meilisearch's answers.
pub const KEYS: [Key; 22] = [
    key("displayedAttributes", "displayed-attributes", false, "invalid_settings_displayed_attributes", true),
    key("searchableAttributes", "searchable-attributes", false, "invalid_settings_searchable_attributes", true),
    key("filterableAttributes", "filterable-attributes", false, "invalid_settings_filterable_attributes", true),
    key("sortableAttributes", "sortable-attributes", false, "invalid_settings_sortable_attributes", true),
    key("foreignKeys", "foreign-keys", false, "invalid_settings_foreign_keys", false),
    key("rankingRules", "ranking-rules", false, "invalid_settings_ranking_rules", true),
    key("stopWords", "stop-words", false, "invalid_settings_stop_words", true),
    key("nonSeparatorTokens", "non-separator-tokens", false, "invalid_settings_non_separator_tokens", true),
    key("separatorTokens", "separator-tokens", false, "invalid_settings_separator_tokens", true),
    key("dictionary", "dictionary", false, "invalid_settings_dictionary", true),
    key("synonyms", "synonyms", false, "invalid_settings_synonyms", true),
    key("distinctAttribute", "distinct-attribute", false, "invalid_settings_distinct_attribute", true),
    key("proximityPrecision", "proximity-precision", false, "invalid_settings_proximity_precision", true),
    key("typoTolerance", "typo-tolerance", true, "invalid_settings_typo_tolerance", true),
    key("faceting", "faceting", true, "invalid_settings_faceting", true),
    key("pagination", "pagination", true, "invalid_settings_pagination", true),
    key("embedders", "embedders", true, "invalid_settings_embedders", true),
    key("searchCutoffMs", "search-cutoff-ms", false, "invalid_settings_search_cutoff_ms", true),
    key("localizedAttributes", "localized-attributes", false, "invalid_settings_localized_attributes", true),
    key("facetSearch", "facet-search", false, "invalid_settings_facet_search", true),
    key("prefixSearch", "prefix-search", false, "invalid_settings_prefix_search", true),
    key("chat", "chat", true, "invalid_settings_index_chat", false),
];

/// One ranking rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rule {
    /// How many words of the query match.
    Words,
    /// How many typos.
    Typo,
    /// How near the words are to one another.
    Proximity,
    /// How far in front the attribute stands in `searchableAttributes`.
    AttributeRank,
    /// How far in front of the attribute the words stand.
    WordPosition,
    /// The sort of the request.
    Sort,
    /// How exact the match is.
    Exactness,
    /// A field, ascending or descending.
    Field(String, bool),
}

/// The settings of one index.
#[derive(Debug, Clone)]
pub struct Settings {
    /// As they are read back, all keys.
    pub values: Map<String, Value>,
    /// `None`: every attribute.
    pub searchable: Option<Vec<String>>,
    /// `None`: every attribute.
    pub displayed: Option<Vec<String>>,
    /// Patterns of attributes that may be filtered by and counted.
    pub filterable: Vec<String>,
    /// Attributes that may be sorted by.
    pub sortable: BTreeSet<String>,
    /// Ranking rules in order.
    pub rules: Vec<Rule>,
    /// Words that queries leave out.
    pub stop_words: BTreeSet<String>,
    /// Attribute of which each value is listed once.
    pub distinct: Option<String>,
    /// Typos are tolerated.
    pub typos: bool,
    /// Letters from which on one typo, and two typos, are tolerated.
    pub typo_lengths: (usize, usize),
    /// Words without typo tolerance.
    pub exact_words: BTreeSet<String>,
    /// Numbers are without typo tolerance.
    pub exact_numbers: bool,
    /// Values that one facet lists at most.
    pub max_facet_values: usize,
    /// Hits that can be reached at most.
    pub max_total_hits: usize,
    /// The last word of a query may be a beginning.
    pub prefix_search: bool,
    /// Dimensions of each `userProvided` embedder.
    pub embedders: BTreeMap<String, Option<usize>>,
}

fn default_rules() -> Value {
    json!(["words", "typo", "proximity", "attributeRank", "sort", "wordPosition", "exactness"])
}

/// The default of a setting.
pub fn default_of(name: &str) -> Value {
    match name {
        "displayedAttributes" | "searchableAttributes" => json!(["*"]),
        "rankingRules" => default_rules(),
        "synonyms" | "embedders" => json!({}),
        "distinctAttribute" | "searchCutoffMs" | "localizedAttributes" => Value::Null,
        "proximityPrecision" => json!("byWord"),
        "typoTolerance" => json!({
            "enabled": true, "minWordSizeForTypos": {"oneTypo": 5, "twoTypos": 9},
            "disableOnWords": [], "disableOnAttributes": [], "disableOnNumbers": false,
        }),
        "faceting" => json!({"maxValuesPerFacet": 100, "sortFacetValuesBy": {"*": "alpha"}}),
        "pagination" => json!({"maxTotalHits": 1000}),
        "facetSearch" => json!(true),
        "prefixSearch" => json!("indexingTime"),
        "chat" => json!({
            "description": "", "documentTemplateMaxBytes": 400, "searchParameters": {},
            "documentTemplate": "",
        }),
        _ => json!([]),
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self::compile(KEYS.iter().map(|key| (key.name.to_owned(), default_of(key.name))).collect())
    }
}

impl Settings {
    /// The settings as answers show them.
    pub fn shown(&self) -> Map<String, Value> {
        let shown = KEYS.iter().filter(|key| key.shown);
        shown.map(|key| (key.name.to_owned(), self.values.get(key.name).cloned().unwrap_or_default())).collect()
    }

    /// These settings with a change that [`check`] has passed.
    pub fn with(&self, change: &Map<String, Value>) -> Self {
        let mut values = self.values.clone();
        for (name, sent) in change {
            let default = default_of(name);
            let merged = match (sent, name.as_str()) {
                (Value::Null, _) => default,
                (Value::Object(sent), "typoTolerance" | "faceting" | "pagination" | "chat") => {
                    let now = values.get(name).cloned().unwrap_or_else(|| default.clone());
                    merge(&now, sent, &default)
                }
                (Value::Object(sent), "embedders") => {
                    let mut now = values.get(name).and_then(Value::as_object).cloned().unwrap_or_default();
                    for (embedder, config) in sent {
                        match config {
                            Value::Null => {
                                now.shift_remove(embedder);
                            }
                            config => {
                                now.insert(embedder.clone(), config.clone());
                            }
                        }
                    }
                    Value::Object(now)
                }
                (sent, _) => sent.clone(),
            };
            values.insert(name.clone(), merged);
        }
        if let Some(orders) = values.get_mut("faceting").and_then(|f| f.get_mut("sortFacetValuesBy")) {
            sort_object(orders);
        }
        Self::compile(values)
    }

    /// Reads the compiled form out of normalised values.
    pub fn compile(values: Map<String, Value>) -> Self {
        let list = |name: &str| -> Vec<String> {
            let items = values.get(name).and_then(Value::as_array);
            items.map(|items| items.iter().filter_map(|v| v.as_str().map(str::to_owned)).collect()).unwrap_or_default()
        };
        let all_or = |name: &str| Some(list(name)).filter(|names| !names.iter().any(|name| name == "*"));
        let mut filterable = Vec::new();
        for rule in values.get("filterableAttributes").and_then(Value::as_array).into_iter().flatten() {
            match rule {
                Value::String(name) => filterable.push(name.clone()),
                rule => {
                    let patterns = rule.get("attributePatterns").and_then(Value::as_array).into_iter().flatten();
                    filterable.extend(patterns.filter_map(|pattern| pattern.as_str().map(str::to_owned)));
                }
            }
        }
        let typo = values.get("typoTolerance").cloned().unwrap_or_default();
        let size = |name: &str, default: u64| {
            typo.pointer(&format!("/minWordSizeForTypos/{name}")).and_then(Value::as_u64).unwrap_or(default) as usize
        };
        let limit = |pointer: &str, default: u64| {
            let limit = pointer.split_once('/').and_then(|(a, b)| values.get(a)?.get(b)?.as_u64());
            usize::try_from(limit.unwrap_or(default)).unwrap_or(usize::MAX)
        };
        let embedders = values.get("embedders").and_then(Value::as_object).into_iter().flatten();
        let exact_words = typo.get("disableOnWords").and_then(Value::as_array).into_iter().flatten();
        Self {
            searchable: all_or("searchableAttributes"),
            displayed: all_or("displayedAttributes"),
            filterable,
            sortable: list("sortableAttributes").into_iter().collect(),
            rules: list("rankingRules").iter().flat_map(|rule| parse_rule(rule).unwrap_or_default()).collect(),
            stop_words: list("stopWords").into_iter().collect(),
            distinct: values.get("distinctAttribute").and_then(Value::as_str).map(str::to_owned),
            typos: typo.get("enabled").and_then(Value::as_bool).unwrap_or(true),
            typo_lengths: (size("oneTypo", 5), size("twoTypos", 9)),
            exact_words: exact_words.filter_map(|word| word.as_str().map(str::to_owned)).collect(),
            exact_numbers: typo.get("disableOnNumbers").and_then(Value::as_bool).unwrap_or(false),
            max_facet_values: limit("faceting/maxValuesPerFacet", 100),
            max_total_hits: limit("pagination/maxTotalHits", 1000),
            prefix_search: values.get("prefixSearch").and_then(Value::as_str) != Some("disabled"),
            embedders: embedders
                .map(|(name, config)| {
                    (name.clone(), config.get("dimensions").and_then(Value::as_u64).map(|n| n as usize))
                })
                .collect(),
            values,
        }
    }

    /// The place of the attribute in the list of searchable ones; `None` if it is not searched.
    pub fn weight(&self, path: &str) -> Option<usize> {
        match &self.searchable {
            None => Some(0),
            Some(names) => names.iter().position(|name| covers(name, path)),
        }
    }

    /// Whether words of this attribute are searched.
    pub fn is_searchable(&self, path: &str) -> bool {
        self.weight(path).is_some()
    }

    /// Whether filters and facets may name this attribute.
    pub fn is_filterable(&self, path: &str) -> bool {
        self.filterable.iter().any(|pattern| covers(pattern, path))
    }

    /// Whether a request may sort by this attribute.
    pub fn is_sortable(&self, path: &str) -> bool {
        self.sortable.iter().any(|name| covers(name, path))
    }

    /// Whether answers may show this attribute.
    pub fn is_displayed(&self, path: &str) -> bool {
        self.displayed.as_ref().is_none_or(|names| names.iter().any(|name| covers(name, path) || covers(path, name)))
    }

    /// Whether values of this attribute are kept for filters, facets, sorts or distinct.
    pub fn is_faceted(&self, path: &str) -> bool {
        self.is_filterable(path)
            || self.is_sortable(path)
            || self.distinct.as_deref().is_some_and(|name| covers(name, path))
            || self.rules.iter().any(|rule| matches!(rule, Rule::Field(name, _) if covers(name, path)))
    }

    /// Whether the values of this facet are ordered by count.
    pub fn facet_by_count(&self, facet: &str) -> bool {
        let orders = self.values.get("faceting").and_then(|faceting| faceting.get("sortFacetValuesBy"));
        let order = orders.and_then(|orders| orders.get(facet).or_else(|| orders.get("*")));
        order.and_then(Value::as_str) == Some("count")
    }

    /// Filterable patterns, sorted, as error texts list them.
    pub fn filterable_names(&self) -> Vec<&str> {
        let names: BTreeSet<&str> = self.filterable.iter().map(String::as_str).collect();
        names.into_iter().collect()
    }
}

/// Whether `path` is the attribute `name`, inside it, or matched by it as a pattern with `*` at an end.
pub fn covers(name: &str, path: &str) -> bool {
    if name == path {
        return true;
    }
    match (name.strip_prefix('*'), name.strip_suffix('*')) {
        (Some(""), _) => true,
        (Some(end), Some(_)) if end.len() > 1 => path.contains(&end[..end.len() - 1]),
        (Some(end), None) => path.ends_with(end),
        (None, Some(start)) => path.starts_with(start),
        _ => path.strip_prefix(name).is_some_and(|rest| rest.starts_with('.')),
    }
}

fn merge(now: &Value, sent: &Map<String, Value>, default: &Value) -> Value {
    let mut merged = now.as_object().cloned().unwrap_or_default();
    for (name, value) in sent {
        let fallback = default.get(name).cloned().unwrap_or_default();
        let value = match (value, name.as_str()) {
            (Value::Null, _) => fallback,
            (Value::Object(inner), "minWordSizeForTypos") => {
                merge(merged.get(name).unwrap_or(&fallback), inner, &fallback)
            }
            (Value::Object(orders), "sortFacetValuesBy") => {
                let mut orders = orders.clone();
                if !orders.contains_key("*") {
                    orders.insert("*".to_owned(), json!("alpha"));
                }
                Value::Object(orders)
            }
            (value, _) => value.clone(),
        };
        merged.insert(name.clone(), value);
    }
    Value::Object(merged)
}

fn sort_object(value: &mut Value) {
    if let Value::Object(map) = value {
        let sorted: BTreeMap<String, Value> = std::mem::take(map).into_iter().collect();
        map.extend(sorted);
    }
}

fn parse_rule(text: &str) -> Option<Vec<Rule>> {
    Some(match text {
        "words" => vec![Rule::Words],
        "typo" => vec![Rule::Typo],
        "proximity" => vec![Rule::Proximity],
        "attribute" => vec![Rule::AttributeRank, Rule::WordPosition],
        "attributeRank" => vec![Rule::AttributeRank],
        "wordPosition" => vec![Rule::WordPosition],
        "sort" => vec![Rule::Sort],
        "exactness" => vec![Rule::Exactness],
        other => {
            let (name, order) = other.rsplit_once(':')?;
            if name.is_empty() || !matches!(order, "asc" | "desc") {
                return None;
            }
            vec![Rule::Field(name.to_owned(), order == "asc")]
        }
    })
}

/// Checks a whole settings object and gives it back in normal form, keys in the order of Meilisearch's answers.
pub fn check_all(sent: &Value) -> Result<Map<String, Value>> {
    let names: Vec<&str> = KEYS.iter().map(|key| key.name).collect();
    let fields = Fields::open(sent, "", "bad_request", &names)?;
    let mut checked = Map::new();
    let Value::Object(map) = sent else { return Ok(checked) };
    for key in &KEYS {
        if let Some(value) = map.get(key.name) {
            checked.insert(key.name.to_owned(), check(key, value, &fields.path(key.name))?);
        }
    }
    Ok(checked)
}

/// The change that sets everything back to its default.
pub fn reset_all() -> Map<String, Value> {
    KEYS.iter().map(|key| (key.name.to_owned(), reset(key))).collect()
}

/// What a reset of one setting looks like.
pub fn reset(key: &Key) -> Value {
    match key.name {
        "displayedAttributes" | "searchableAttributes" => json!(["*"]),
        _ => Value::Null,
    }
}

/// Checks the value of one setting, standing at `path` in the request, and gives it back in normal form.
pub fn check(key: &Key, value: &Value, path: &str) -> Result<Value> {
    if value.is_null() {
        return Ok(reset(key));
    }
    let strings = || string_list(key.code, path, value);
    let sorted = |strings: Vec<String>| json!(strings.into_iter().collect::<BTreeSet<_>>());
    Ok(match key.name {
        "displayedAttributes" | "searchableAttributes" => json!(strings()?),
        "sortableAttributes" | "stopWords" | "nonSeparatorTokens" | "separatorTokens" | "dictionary" => {
            sorted(strings()?)
        }
        "filterableAttributes" => check_filterable(key, value, path)?,
        "rankingRules" => {
            let rules = strings()?;
            for (at, rule) in rules.iter().enumerate() {
                if parse_rule(rule).is_none() {
                    let why = format!(
                        "`{rule}` ranking rule is invalid. Valid ranking rules are words, typo, sort, proximity, \
                         attribute, exactness and custom ranking rules."
                    );
                    return Err(ApiError::new(key.code, format!("Invalid value at `{path}[{at}]`: {why}")));
                }
            }
            json!(rules)
        }
        "synonyms" => {
            let Value::Object(map) = value else { return Err(wrong_type(key.code, path, "an object", value)) };
            let mut synonyms = BTreeMap::new();
            for (word, list) in map {
                synonyms.insert(word.clone(), string_list(key.code, &format!("{path}.{word}"), list)?);
            }
            json!(synonyms)
        }
        "distinctAttribute" => match value {
            Value::String(_) => value.clone(),
            other => return Err(wrong_type(key.code, path, "a string", other)),
        },
        "proximityPrecision" => one_of(key, value, path, &["byWord", "byAttribute"])?,
        "prefixSearch" => one_of(key, value, path, &["indexingTime", "disabled"])?,
        "facetSearch" => match value {
            Value::Bool(_) => value.clone(),
            other => return Err(wrong_type(key.code, path, "a boolean", other)),
        },
        "searchCutoffMs" => match value.as_u64() {
            Some(_) => value.clone(),
            None => return Err(wrong_type(key.code, path, "a positive integer", value)),
        },
        "typoTolerance" => check_typo(key, value, path)?,
        "faceting" => check_faceting(key, value, path)?,
        "pagination" => {
            let fields = Fields::open(value, path, key.code, &["maxTotalHits"])?;
            fields.count("maxTotalHits", key.code)?;
            value.clone()
        }
        "embedders" => check_embedders(key, value, path)?,
        "localizedAttributes" => check_localized(key, value, path)?,
        _ => value.clone(),
    })
}

fn one_of(key: &Key, value: &Value, path: &str, words: &[&str]) -> Result<Value> {
    let Value::String(text) = value else { return Err(wrong_type(key.code, path, "a string", value)) };
    if words.contains(&text.as_str()) {
        return Ok(value.clone());
    }
    let at = if path.is_empty() { String::new() } else { format!(" at `{path}`") };
    let list = super::params::name_list(words);
    Err(ApiError::new(key.code, format!("Unknown value `{text}`{at}: expected one of {list}")))
}

fn check_filterable(key: &Key, value: &Value, path: &str) -> Result<Value> {
    let Value::Array(items) = value else { return Err(wrong_type(key.code, path, "an array", value)) };
    let mut rules = Vec::with_capacity(items.len());
    for (at, item) in items.iter().enumerate() {
        let path = format!("{path}[{at}]");
        match item {
            Value::String(_) => rules.push(item.clone()),
            Value::Object(_) => {
                let fields = Fields::open(item, &path, key.code, &["attributePatterns", "features"])?;
                let Some(patterns) = fields.strings("attributePatterns", key.code)? else {
                    return Err(fields.missing("attributePatterns", key.code));
                };
                let default = json!({"facetSearch": false, "filter": {"equality": true, "comparison": false}});
                let features = fields.get("features").cloned().unwrap_or(default);
                rules.push(json!({"attributePatterns": patterns, "features": features}));
            }
            other => return Err(wrong_type(key.code, &path, "a string", other)),
        }
    }
    Ok(Value::Array(rules))
}

fn check_localized(key: &Key, value: &Value, path: &str) -> Result<Value> {
    let Value::Array(items) = value else { return Err(wrong_type(key.code, path, "an array", value)) };
    let mut rules = Vec::with_capacity(items.len());
    for (at, item) in items.iter().enumerate() {
        let fields = Fields::open(item, &format!("{path}[{at}]"), key.code, &["attributePatterns", "locales"])?;
        let patterns = fields.strings("attributePatterns", key.code)?.unwrap_or_default();
        rules.push(
            json!({"attributePatterns": patterns, "locales": fields.strings("locales", key.code)?.unwrap_or_default()}),
        );
    }
    Ok(Value::Array(rules))
}

fn check_typo(key: &Key, value: &Value, path: &str) -> Result<Value> {
    let names = ["enabled", "minWordSizeForTypos", "disableOnWords", "disableOnAttributes", "disableOnNumbers"];
    let fields = Fields::open(value, path, key.code, &names)?;
    fields.boolean("enabled", key.code)?;
    fields.boolean("disableOnNumbers", key.code)?;
    let mut checked = value.as_object().cloned().unwrap_or_default();
    for name in ["disableOnWords", "disableOnAttributes"] {
        if let Some(list) = fields.strings(name, key.code)? {
            checked.insert(name.to_owned(), json!(list.into_iter().collect::<BTreeSet<_>>()));
        }
    }
    if let Some(sizes) = fields.get("minWordSizeForTypos") {
        let at = fields.path("minWordSizeForTypos");
        let inner = Fields::open(sizes, &at, key.code, &["oneTypo", "twoTypos"])?;
        let (one, two) = (inner.count("oneTypo", key.code)?, inner.count("twoTypos", key.code)?);
        if let (Some(one), Some(two)) = (one, two)
            && one > two
        {
            let why = format!(
                "`minWordSizeForTypos` setting is invalid. `oneTypo` and `twoTypos` fields should be between `0` and \
                 `255`, and `twoTypos` should be greater or equals to `oneTypo` but found `oneTypo: {one}` and \
                 twoTypos: {two}`."
            );
            return Err(ApiError::new(key.code, format!("Invalid value at `{at}`: {why}")));
        }
    }
    Ok(Value::Object(checked))
}

fn check_faceting(key: &Key, value: &Value, path: &str) -> Result<Value> {
    let fields = Fields::open(value, path, key.code, &["maxValuesPerFacet", "sortFacetValuesBy"])?;
    fields.count("maxValuesPerFacet", key.code)?;
    if let Some(orders) = fields.get("sortFacetValuesBy") {
        let at = fields.path("sortFacetValuesBy");
        let Value::Object(map) = orders else { return Err(wrong_type(key.code, &at, "an object", orders)) };
        for (facet, order) in map {
            one_of(key, order, &format!("{at}.{facet}"), &["alpha", "count"])?;
        }
    }
    Ok(value.clone())
}

fn check_embedders(key: &Key, value: &Value, path: &str) -> Result<Value> {
    let Value::Object(map) = value else { return Err(wrong_type(key.code, path, "an object", value)) };
    for (name, config) in map {
        let at = format!("{path}.{name}");
        if config.is_null() {
            continue;
        }
        let Value::Object(config) = config else { return Err(wrong_type(key.code, &at, "an object", config)) };
        if config.get("source").and_then(Value::as_str) != Some("userProvided") {
            let text = format!("The stand-in has only embedders with `source: userProvided` (at `{at}`).");
            return Err(ApiError::new(key.code, text));
        }
        if config.get("dimensions").and_then(Value::as_u64).is_none_or(|n| n == 0 || n > 65_536) {
            let text =
                format!("`{at}`: Missing field `dimensions` (note: this field is mandatory for source `userProvided`)");
            return Err(ApiError::new(key.code, text));
        }
    }
    Ok(value.clone())
}
