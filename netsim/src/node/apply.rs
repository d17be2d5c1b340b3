//! Processing a batch of tasks: what each does to indexes and documents.
//!
//! Rule: first everything is worked out without changing anything, then it is committed together with the final state
//! of the tasks, then the indexes in memory change; so a task is done wholly or not at all. Must not know: HTTP.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::PoisonError;

use serde_json::{Map, Value, json};

use super::documents::{id_of, infer_primary_key};
use super::edit::{self, Step};
use super::error::{ApiError, Result};
use super::filter::{self, Wording};
use super::index::{DocId, Index};
use super::settings::Settings;
use super::special;
use super::storage::{StoredIndex, Write};
use super::tasks::{Engine, Task, Work, now};

/// A change of the indexes in memory, made after the commit.
type Effect = Box<dyn FnOnce(&mut std::collections::BTreeMap<String, Index>) + Send>;

/// What a batch does.
#[derive(Default)]
struct Plan {
    writes: Vec<Write>,
    effects: Vec<Effect>,
}

/// Processes a batch and commits it. Tasks that can't be done are failed; `finish` closes each task before the commit.
pub fn run(engine: &Engine, batch: &mut [Task], failed: bool, finish: impl Fn(&mut Task)) -> anyhow::Result<()> {
    let mut plan = Plan::default();
    let about_documents =
        matches!(batch.first().map(|t| &t.work), Some(Some(Work::Documents { .. } | Work::DeleteIds(_))));
    if failed {
        // Told to fail: nothing is done.
    } else if about_documents {
        documents(engine, batch, &mut plan);
    } else {
        for task in batch.iter_mut() {
            if let Err(error) = single(engine, task, &mut plan) {
                plan = Plan::default();
                task.fail(&error);
            }
        }
    }
    for task in batch.iter_mut() {
        finish(task);
        plan.writes.push(Write::Task(Box::new(task.clone())));
    }
    engine.commit(&plan.writes)?;
    let mut indexes = engine.indexes.write().unwrap_or_else(PoisonError::into_inner);
    for effect in plan.effects {
        effect(&mut indexes);
    }
    Ok(())
}

fn stored(uid: &str, index: &Index) -> StoredIndex {
    StoredIndex {
        number: index.number,
        uid: uid.to_owned(),
        created_at: index.created_at.clone(),
        updated_at: now(),
        primary_key: index.primary_key.clone(),
        settings: index.settings.values.clone(),
    }
}

fn fresh(indexes: &std::collections::BTreeMap<String, Index>, primary_key: Option<String>) -> Index {
    let number = indexes.values().map(|index| index.number).max().unwrap_or(0) + 1;
    let now = now();
    Index::new(number, now.clone(), now, primary_key, Settings::default())
}

/// A task that is a batch of its own.
fn single(engine: &Engine, task: &mut Task, plan: &mut Plan) -> Result<()> {
    let indexes = engine.indexes.read().unwrap_or_else(PoisonError::into_inner);
    let uid = task.index.clone();
    let found = indexes.get(&uid);
    let missing = || ApiError::index_not_found(&uid);
    match task.work.clone() {
        None | Some(Work::Documents { .. } | Work::DeleteIds(_)) => {}
        Some(Work::Create(primary_key)) => {
            if found.is_some() {
                return Err(ApiError::new("index_already_exists", format!("Index `{uid}` already exists.")));
            }
            let index = fresh(&indexes, primary_key);
            plan.writes.push(Write::Index(Box::new(stored(&uid, &index))));
            plan.effects.push(Box::new(move |indexes| drop(indexes.insert(uid, index))));
        }
        Some(Work::Update { primary_key, uid: renamed }) => {
            let index = found.ok_or_else(missing)?;
            update(indexes.keys().collect(), index, &uid, primary_key, renamed, plan)?;
        }
        Some(Work::Delete) => {
            let index = found.ok_or_else(missing)?;
            task.details.insert("deletedDocuments".to_owned(), json!(index.len()));
            plan.writes.push(Write::RemoveIndex(index.number));
            plan.effects.push(Box::new(move |indexes| drop(indexes.remove(&uid))));
        }
        Some(Work::Clear) => {
            let index = found.ok_or_else(missing)?;
            task.details.insert("deletedDocuments".to_owned(), json!(index.len()));
            let gone: Vec<DocId> = index.docs().map(|(docid, _)| docid).collect();
            plan.writes.push(Write::Clear(index.number));
            remove(&uid, index, gone, plan);
        }
        Some(Work::DeleteFilter(value)) => {
            let index = found.ok_or_else(missing)?;
            let gone = filtered(&uid, index, &value)?;
            task.details.insert("deletedDocuments".to_owned(), json!(gone.len()));
            plan.writes.extend(gone.iter().map(|docid| Write::RemoveDocument(index.number, *docid)));
            remove(&uid, index, gone, plan);
        }
        Some(Work::Edit { filter, steps }) => {
            let index = found.ok_or_else(missing)?;
            let passing = match filter {
                Some(filter) => filtered(&uid, index, &filter)?,
                None => index.docs().map(|(docid, _)| docid).collect(),
            };
            let count = json!(passing.len());
            edited(&uid, index, &steps, passing, plan)?;
            task.details.insert("editedDocuments".to_owned(), count.clone());
            task.details.insert("deletedDocuments".to_owned(), count);
        }
        Some(Work::Settings { change, reset }) => {
            let index = match found {
                Some(index) => {
                    let mut record = stored(&uid, index);
                    let settings = index.settings.with(&change);
                    record.settings = settings.values.clone();
                    plan.writes.push(Write::Index(Box::new(record.clone())));
                    plan.effects.push(Box::new(move |indexes| {
                        if let Some(index) = indexes.get_mut(&uid) {
                            index.reindex(settings);
                            index.updated_at = record.updated_at;
                        }
                    }));
                    return Ok(());
                }
                None if reset => return Err(missing()),
                None => fresh(&indexes, None),
            };
            let mut index = index;
            index.settings = index.settings.with(&change);
            plan.writes.push(Write::Index(Box::new(stored(&uid, &index))));
            plan.effects.push(Box::new(move |indexes| drop(indexes.insert(uid, index))));
        }
    }
    Ok(())
}

fn update(
    names: Vec<&String>,
    index: &Index,
    uid: &str,
    primary_key: Option<String>,
    renamed: Option<String>,
    plan: &mut Plan,
) -> Result<()> {
    let mut record = stored(uid, index);
    if let Some(wanted) = primary_key {
        if let Some(now) = index.primary_key.as_ref().filter(|now| **now != wanted && !index.is_empty()) {
            let text = format!("Index `{uid}`: Index already has a primary key: `{now}`.");
            return Err(ApiError::new("index_primary_key_already_exists", text));
        }
        record.primary_key = Some(wanted);
    }
    if let Some(new) = &renamed {
        if names.contains(&new) {
            return Err(ApiError::new("index_already_exists", format!("Index `{new}` already exists.")));
        }
        record.uid.clone_from(new);
    }
    plan.writes.push(Write::Index(Box::new(record.clone())));
    let uid = uid.to_owned();
    plan.effects.push(Box::new(move |indexes| {
        if let Some(mut index) = indexes.remove(&uid) {
            index.primary_key = record.primary_key;
            index.updated_at = record.updated_at;
            indexes.insert(record.uid, index);
        }
    }));
    Ok(())
}

fn filtered(uid: &str, index: &Index, value: &Value) -> Result<Vec<DocId>> {
    let code = "invalid_document_filter";
    let Some(filter) = filter::parse(value, code)? else { return Ok(Vec::new()) };
    filter.check(&index.settings, Wording { code, index: Some(uid), canonical: false })?;
    Ok(index.docs().filter(|(_, doc)| filter.passes(doc)).map(|(docid, _)| docid).collect())
}

fn edited(uid: &str, index: &Index, steps: &[Step], docids: Vec<DocId>, plan: &mut Plan) -> Result<()> {
    let record = stored(uid, index);
    let mut prepared = Vec::with_capacity(docids.len());
    for docid in docids {
        let Some(doc) = index.doc(docid) else { continue };
        let mut tree = doc.tree();
        if let Some(vectors) = &doc.vectors {
            tree.insert("_vectors".to_owned(), vectors.clone());
        }
        match edit::run(steps, tree)? {
            Some(tree) => {
                if index.primary_key.as_deref().is_some_and(|key| id_of(&tree, key).ok().as_ref() != Some(&doc.id)) {
                    let text = format!("Index `{uid}`: Document editions cannot modify a document's primary key");
                    return Err(ApiError::new("edit_documents_by_function_error", text));
                }
                let json = serde_json::to_string(&tree).unwrap_or_default();
                plan.writes.push(Write::Document(index.number, docid, json));
                prepared.push(Index::prepare(&index.settings, docid, doc.id.clone(), tree));
            }
            None => {
                plan.writes.push(Write::RemoveDocument(index.number, docid));
                prepared.push(Index::prepare_removal(docid));
            }
        }
    }
    plan.writes.push(Write::Index(Box::new(record.clone())));
    let uid = uid.to_owned();
    plan.effects.push(Box::new(move |indexes| {
        if let Some(index) = indexes.get_mut(&uid) {
            index.apply(prepared);
            index.updated_at = record.updated_at;
        }
    }));
    Ok(())
}

fn remove(uid: &str, index: &Index, gone: Vec<DocId>, plan: &mut Plan) {
    let record = stored(uid, index);
    plan.writes.push(Write::Index(Box::new(record.clone())));
    let uid = uid.to_owned();
    plan.effects.push(Box::new(move |indexes| {
        if let Some(index) = indexes.get_mut(&uid) {
            index.apply(gone.into_iter().map(Index::prepare_removal).collect());
            index.updated_at = record.updated_at;
        }
    }));
}

/// The documents as they stand while a batch is worked out.
struct Overlay<'a> {
    index: Option<&'a Index>,
    uid: String,
    primary_key: Option<String>,
    settings: Settings,
    changed: HashMap<String, (DocId, Option<Map<String, Value>>)>,
    free: Box<dyn Iterator<Item = DocId> + 'a>,
}

/// Additions and deletions of documents of one index, in order.
fn documents(engine: &Engine, batch: &mut [Task], plan: &mut Plan) {
    let Some(uid) = batch.first().map(|task| task.index.clone()) else { return };
    let indexes = engine.indexes.read().unwrap_or_else(PoisonError::into_inner);
    let found = indexes.get(&uid);
    let mut overlay = Overlay {
        index: found,
        uid: uid.clone(),
        primary_key: found.and_then(|index| index.primary_key.clone()),
        settings: found.map(|index| index.settings.clone()).unwrap_or_default(),
        changed: HashMap::new(),
        free: match found {
            Some(index) => Box::new(index.free_docids()),
            None => Box::new(0..),
        },
    };
    let mut exists = found.is_some();
    let mut changes = false;
    for task in batch.iter_mut() {
        let outcome = match task.work.take() {
            Some(Work::Documents { merge, skip_creation, primary_key, documents }) => {
                exists = true;
                let added = overlay.add(merge, skip_creation, primary_key, documents);
                added.map(|count| ("indexedDocuments", count))
            }
            Some(Work::DeleteIds(ids)) if exists => Ok(("deletedDocuments", overlay.delete(ids))),
            _ => Err(ApiError::index_not_found(&uid)),
        };
        match outcome {
            Ok((name, count)) => {
                changes = true;
                task.details.insert(name.to_owned(), json!(count));
            }
            Err(error) => task.fail(&error),
        }
    }
    let Overlay { settings, primary_key, changed, free, .. } = overlay;
    drop(free);
    let created = (found.is_none() && exists).then(|| fresh(&indexes, None));
    let Some(index) = found.or(created.as_ref()) else { return };
    let mut record = stored(&uid, index);
    record.primary_key.clone_from(&primary_key);
    if !changes {
        record.updated_at.clone_from(&index.updated_at);
    }
    let mut prepared = Vec::with_capacity(changed.len());
    let mut changed: Vec<_> = changed.into_iter().collect();
    changed.sort_by_key(|(_, (docid, _))| *docid);
    for (id, (docid, tree)) in changed {
        match tree {
            Some(tree) => {
                let json = serde_json::to_string(&tree).unwrap_or_default();
                plan.writes.push(Write::Document(record.number, docid, json));
                prepared.push(Index::prepare(&settings, docid, id, tree));
            }
            None => {
                plan.writes.push(Write::RemoveDocument(record.number, docid));
                prepared.push(Index::prepare_removal(docid));
            }
        }
    }
    plan.writes.push(Write::Index(Box::new(record.clone())));
    plan.effects.push(Box::new(move |indexes| {
        let index = match created {
            Some(index) => indexes.entry(uid).or_insert(index),
            None => match indexes.get_mut(&uid) {
                Some(index) => index,
                None => return,
            },
        };
        index.primary_key = record.primary_key;
        index.updated_at = record.updated_at;
        index.apply(prepared);
    }));
}

impl Overlay<'_> {
    fn current(&self, id: &str) -> Option<(DocId, Map<String, Value>)> {
        if let Some((docid, tree)) = self.changed.get(id) {
            return tree.clone().map(|tree| (*docid, tree));
        }
        let index = self.index?;
        let docid = index.docid(id)?;
        let doc = index.doc(docid)?;
        let mut tree = doc.tree();
        if let Some(vectors) = &doc.vectors {
            tree.insert("_vectors".to_owned(), vectors.clone());
        }
        Some((docid, tree))
    }

    /// Adds documents; the answer is how many different ids they have.
    fn add(
        &mut self,
        merge: bool,
        skip_creation: bool,
        asked: Option<String>,
        documents: Vec<Map<String, Value>>,
    ) -> Result<usize> {
        let primary_key = match (&self.primary_key, asked) {
            (Some(now), Some(asked)) if *now != asked => {
                let text = format!("Index already has a primary key: `{now}`.");
                return Err(ApiError::new("index_primary_key_already_exists", text));
            }
            (Some(now), _) => now.clone(),
            (None, Some(asked)) => asked,
            (None, None) => match documents.first() {
                Some(first) => infer_primary_key(first)?,
                None => return Ok(0),
            },
        };
        let mut ids = Vec::with_capacity(documents.len());
        for document in &documents {
            ids.push(id_of(document, &primary_key)?);
        }
        let mut next: HashMap<String, Option<Map<String, Value>>> = HashMap::new();
        let mut order = Vec::new();
        for (id, document) in ids.iter().zip(documents) {
            let before = match next.get(id) {
                Some(tree) => tree.clone(),
                None => self.current(id).map(|(_, tree)| tree),
            };
            if before.is_none() && skip_creation {
                continue;
            }
            let tree = match before {
                Some(mut tree) if merge => {
                    tree.extend(document);
                    tree
                }
                _ => document,
            };
            if next.insert(id.clone(), Some(tree)).is_none() {
                order.push(id.clone());
            }
        }
        let checked: Vec<_> = order.iter().filter_map(|id| Some((id, next.get(id)?.as_ref()?))).collect();
        special::check(&self.settings, &self.uid, &checked)?;
        for id in order {
            let Some(tree) = next.remove(&id) else { continue };
            let known = self.changed.get(&id).map(|(docid, _)| *docid);
            let known = known.or_else(|| self.index.and_then(|index| index.docid(&id)));
            let Some(docid) = known.or_else(|| self.free.next()) else { continue };
            self.changed.insert(id, (docid, tree));
        }
        self.primary_key = Some(primary_key);
        Ok(ids.iter().collect::<HashSet<_>>().len())
    }

    /// Deletes documents; the answer is how many there were.
    fn delete(&mut self, ids: Vec<String>) -> usize {
        let mut deleted = 0;
        for id in ids.into_iter().collect::<BTreeSet<_>>() {
            if let Some((docid, _)) = self.current(&id) {
                deleted += 1;
                self.changed.insert(id, (docid, None));
            }
        }
        deleted
    }
}
