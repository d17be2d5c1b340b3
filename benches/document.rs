//! Bytes per second from a client's body to one body for each member, and back from a node's documents to a client's.

use std::hint::black_box;

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use miroir::proto::document::{Batch, Format, Payload, strip_shard_into};

const DOCUMENTS: usize = 5_000;
const SHARDS: u16 = 64;
const MEMBERS: usize = 3;

/// Documents of about 700 bytes with the shape of package descriptions, always the same.
fn documents() -> Vec<String> {
    let words = ["library", "module", "für", "data", "tools", "\\\"quoted\\\"", "common", "files", "development"];
    let text =
        |n: usize, len: usize| (0..len).map(|i| words[(n * 7 + i * i) % words.len()]).collect::<Vec<_>>().join(" ");
    let one = |n: usize| {
        format!(
            "{{\"id\": \"package-{n}\", \"name\": \"package {n}\", \"section\": \"{}\", \"size\": {}, \"ratio\": {}.25, \
             \"tags\": [\"a{}\", \"b\", \"c\"], \"nested\": {{\"depends\": [{{\"on\": {n}}}, null, true]}}, \
             \"summary\": \"{}\", \"description\": \"{}\"}}",
            words[n % 3],
            n * 977,
            n % 50,
            n % 13,
            text(n, 8),
            text(n + 1, 60)
        )
    };
    (0..DOCUMENTS).map(one).collect()
}

fn split(body: &Bytes, format: Format, owners: &[Vec<usize>]) -> usize {
    let payload = Payload::parse(body.clone(), format).expect("valid documents");
    let key = payload.primary_key(None, None).expect("one candidate").expect("there are documents");
    let batch: Batch = payload.batch(&key, SHARDS).expect("valid ids");
    batch.split(MEMBERS, |shard| &owners[usize::from(shard.0)]).iter().map(|part| part.body.len()).sum()
}

fn splitting(c: &mut Criterion) {
    let documents = documents();
    let owners: Vec<Vec<usize>> = (0..usize::from(SHARDS)).map(|s| vec![s % MEMBERS]).collect();
    let csv: String = documents.iter().enumerate().map(|(n, d)| format!("p{n},{n},{}\n", d.len())).collect();
    let mut group = c.benchmark_group("split");
    for (name, format, body) in [
        ("json", Format::Json, format!("[{}]", documents.join(",\n"))),
        ("ndjson", Format::Ndjson, documents.join("\n")),
        ("csv", Format::Csv { delimiter: b',' }, format!("id,n:number,size:number\n{csv}")),
    ] {
        let body = Bytes::from(body);
        group.throughput(Throughput::Bytes(body.len() as u64));
        group.bench_function(name, |b| b.iter(|| split(black_box(&body), format, &owners)));
    }
    group.finish();
}

fn stripping(c: &mut Criterion) {
    let first: Vec<String> =
        documents().iter().map(|d| format!("{{\"_miroir_shard\":\"\u{a007}\",{}", &d[1..])).collect();
    let last: Vec<String> =
        documents().iter().map(|d| format!("{},\"_miroir_shard\":\"\u{a007}\"}}", &d[..d.len() - 1])).collect();
    // A node lists the field behind the primary key.
    let second: Vec<String> =
        documents().iter().map(|d| d.replacen(", ", ",\"_miroir_shard\":\"\u{a007}\",", 1)).collect();
    let mut group = c.benchmark_group("strip");
    for (name, documents) in
        [("first member", first), ("second member", second), ("last member", last), ("not there", documents())]
    {
        let bytes: usize = documents.iter().map(String::len).sum();
        group.throughput(Throughput::Bytes(bytes as u64));
        let mut out = Vec::with_capacity(bytes);
        group.bench_function(name, |b| {
            b.iter(|| {
                out.clear();
                for document in &documents {
                    strip_shard_into(black_box(document.as_bytes()), &mut out).expect("an object");
                }
                out.len()
            });
        });
    }
    group.finish();
}

criterion_group!(benches, splitting, stripping);
criterion_main!(benches);
