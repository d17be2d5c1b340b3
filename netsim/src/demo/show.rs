//! What the demo says once the mesh is ready: one JSON line, or searches with their latencies and where to go on.
//!
//! Must not know: how the mesh came about.

use std::fmt::Write as _;
use std::path::Path;
use std::time::Instant;

use serde_json::{Map, Value, json};

use crate::mesh::{Client, Documents, Mesh};

/// Queries for the built-in sample and the data set that it is from.
const QUERIES: [&str; 4] = ["text editor", "python lib", "netwrok monitor", "game"];

/// The line that `--json` prints.
pub fn json_line(mesh: &Mesh, index: &str, documents: usize, master_key: Option<&str>, dir: &Path) -> Value {
    let members: Vec<Value> = mesh
        .members
        .iter()
        .map(|m| {
            json!({
                "id": m.id,
                "http": format!("http://{}", m.http),
                "metrics": format!("http://{}/metrics", m.metrics),
                "mesh": m.mesh.to_string(),
                "sidecar_pid": m.sidecar_pid(),
                "node_pid": m.node_pid(),
                "node_url": format!("http://{}", m.node),
                "dir": m.dir,
            })
        })
        .collect();
    json!({
        "members": members,
        "index": index,
        "documents": documents,
        "master_key": master_key,
        "admin_key": mesh.admin_key,
        "node_key": mesh.node_key,
        "dir": dir,
    })
}

/// Asks one member after another, and says what came and how long it took.
pub async fn searches(mesh: &Mesh, index: &str, documents: &Documents) -> anyhow::Result<String> {
    let mut out = String::new();
    let queries = queries(documents)?;
    for (i, query) in queries.iter().enumerate() {
        let number = i % mesh.members.len();
        let mut client = mesh.client(number);
        // The first request opens the connection and is not the one that is shown.
        client.get("/health").await?.success()?;
        let (answer, micros) = search(&mut client, index, query).await?;
        let hits: Vec<String> = answer["hits"].as_array().into_iter().flatten().take(3).map(name_of).collect();
        writeln!(
            out,
            "  {:<18} {:>7} hits in {:>5.1} ms through {}: {}",
            format!("“{query}”"),
            answer["estimatedTotalHits"],
            micros / 1000.0,
            mesh.members[number].id,
            hits.join(", ")
        )?;
    }
    Ok(out)
}

async fn search(client: &mut Client, index: &str, query: &str) -> anyhow::Result<(Value, f64)> {
    let path = format!("/indexes/{index}/search");
    let body = json!({ "q": query, "limit": 3 });
    let began = Instant::now();
    let answer = client.json(hyper::Method::POST, &path, &body).await?.success()?;
    let micros = began.elapsed().as_secs_f64() * 1e6;
    Ok((answer.json()?, micros))
}

/// Words that some of the documents have.
fn queries(documents: &Documents) -> anyhow::Result<Vec<String>> {
    let first = documents.first(200)?;
    let packages = first.iter().all(|d| d.contains_key("summary") && d.contains_key("maintainer"));
    if packages {
        return Ok(QUERIES.map(str::to_owned).to_vec());
    }
    let step = (first.len() / 3).max(1);
    let words = |d: &Map<String, Value>| {
        let text = d.values().filter_map(Value::as_str).max_by_key(|text| text.len())?;
        let words: Vec<&str> = text.split(|c: char| !c.is_alphanumeric()).filter(|w| w.len() > 2).take(2).collect();
        (!words.is_empty()).then(|| words.join(" "))
    };
    Ok(first.iter().step_by(step).filter_map(words).take(4).collect())
}

fn name_of(hit: &Value) -> String {
    let named = ["name", "title", "id"].into_iter().find_map(|field| match &hit[field] {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    });
    named.unwrap_or_else(|| "…".to_owned())
}

/// Where to point a browser or curl.
pub fn pointers(mesh: &Mesh, index: &str, master_key: Option<&str>) -> String {
    let mut out = String::new();
    let key = master_key.map(|k| format!(" -H 'Authorization: Bearer {k}'")).unwrap_or_default();
    for m in &mesh.members {
        let _ = writeln!(out, "  {}: http://{}  (metrics: http://{}/metrics)", m.id, m.http, m.metrics);
    }
    let first = &mesh.members[0];
    let _ = writeln!(out, "\nTry, at any of them:");
    if master_key.is_none() {
        let _ = writeln!(out, "  http://{}/indexes/{index}/search?q=editor   (in a browser)", first.http);
    }
    let _ = writeln!(out, "  curl{key} 'http://{}/indexes/{index}/search?q=editor&limit=3'", first.http);
    let _ =
        writeln!(out, "  curl -H 'Authorization: Bearer {}' http://{}/_miroir/topology", mesh.admin_key, first.http);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_words_of_the_documents() {
        assert_eq!(queries(&Documents::Sample).unwrap(), QUERIES);
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "{\"id\":1,\"title\":\"The quick fox\"}\n{\"id\":2}\n").unwrap();
        assert_eq!(queries(&Documents::File(file.path().to_owned())).unwrap(), ["The quick"]);
    }

    #[test]
    fn hits_are_named_by_what_they_have() {
        assert_eq!(name_of(&json!({ "id": 7 })), "7");
        assert_eq!(name_of(&json!({ "title": "Dune", "id": 7 })), "Dune");
        assert_eq!(name_of(&json!({ "x": 1 })), "…");
    }
}
