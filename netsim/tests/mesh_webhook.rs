//! A webhook of the whole mesh, with real processes: it hears of every task once, whichever member took it, and goes on hearing
//! when members die.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::{Mesh, Plan, documents, say, wait_until};
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(60);
/// Each has a primary of its own, which tells of its tasks.
const HOMES: u64 = 16;
const SECRET: &str = "Bearer of-the-webhook";

/// Whoever is told of tasks.
struct Receiver {
    address: SocketAddr,
    told: Arc<Mutex<Vec<Value>>>,
}

impl Receiver {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let told: Arc<Mutex<Vec<Value>>> = Arc::default();
        let all = Arc::clone(&told);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (stream, all) = (stream.unwrap(), Arc::clone(&all));
                // A caller that dies leaves a call unfinished: nobody has been told by it.
                std::thread::spawn(move || {
                    while let Some(tasks) = hear(&stream) {
                        all.lock().unwrap().extend(tasks);
                        if (&stream).write_all(b"HTTP/1.1 204 No Content\r\n\r\n").is_err() {
                            return;
                        }
                    }
                });
            }
        });
        Self { address, told }
    }

    /// How often each task was told of, and as what.
    fn told(&self) -> BTreeMap<u64, Vec<Value>> {
        let mut out: BTreeMap<u64, Vec<Value>> = BTreeMap::new();
        for task in self.told.lock().unwrap().iter() {
            out.entry(task["uid"].as_u64().unwrap()).or_default().push(task.clone());
        }
        out
    }

    #[track_caller]
    fn wait_told(&self, uids: &BTreeSet<u64>) {
        let lacking = || {
            let told = self.told();
            uids.iter().copied().filter(|uid| !told.contains_key(uid)).collect::<Vec<_>>()
        };
        let began = std::time::Instant::now();
        while began.elapsed() < PATIENCE && !lacking().is_empty() {
            std::thread::sleep(Duration::from_millis(20));
        }
        assert_eq!(lacking(), [0_u64; 0], "of {} tasks the webhook has not heard of these", uids.len());
    }
}

/// One call, whole; `None` where the connection ended.
fn hear(stream: &TcpStream) -> Option<Vec<Value>> {
    let mut reader = BufReader::new(stream);
    let (mut line, mut head) = (String::new(), Vec::new());
    loop {
        line.clear();
        if reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        match line.trim_end() {
            "" => break,
            text => head.push(text.to_owned()),
        }
    }
    assert_eq!(head[0], "POST /hook?of=mesh HTTP/1.1");
    let header = |name: &str| {
        let fields = head.iter().filter_map(|line| line.split_once(": "));
        let mut of_name = fields.filter(|(n, _)| n.eq_ignore_ascii_case(name));
        of_name.next().unwrap_or_else(|| panic!("no {name} in {head:?}")).1
    };
    assert_eq!((header("content-type"), header("content-encoding")), ("application/x-ndjson", "gzip"));
    assert_eq!(header("authorization"), SECRET);
    let mut body = vec![0; header("content-length").parse().unwrap()];
    reader.read_exact(&mut body).ok()?;
    assert!(reader.buffer().is_empty(), "the next call came before the answer");
    Some(documents(&body))
}

/// So many writes of each kind through these members; gives their tasks.
fn write(mesh: &Mesh, through: &[usize], rounds: u64) -> BTreeSet<u64> {
    let mut uids = BTreeSet::new();
    for round in 0..rounds {
        for i in through {
            let client = mesh.client(*i);
            let documents = "/indexes/books/documents";
            let answers = [
                client.json("POST", documents, &json!([{"id": round, "by": i}, {"id": round + 100}])),
                client.json("POST", &format!("{documents}/delete-batch"), &json!([round + 100])),
                // Refused by a task.
                client.json("POST", documents, &json!([{"title": "without an id"}])),
            ];
            uids.extend(answers.map(|answer| answer.expect(202)["taskUid"].as_u64().unwrap()));
        }
    }
    uids
}

/// Waits until they have ended, by member `at`; gives them as they are shown.
fn ended(mesh: &Mesh, at: usize, uids: &BTreeSet<u64>) -> BTreeMap<u64, Value> {
    let client = mesh.client(at);
    let mut all = BTreeMap::new();
    for uid in uids {
        wait_until("a task to end", PATIENCE, || {
            let task = client.get(&format!("/tasks/{uid}")).expect(200);
            let is_open = task["status"] == "enqueued" || task["status"] == "processing";
            all.insert(*uid, task);
            !is_open
        });
    }
    all
}

fn homes(uids: &BTreeSet<u64>) -> usize {
    uids.iter().map(|uid| uid % HOMES).collect::<BTreeSet<_>>().len()
}

#[test]
fn a_webhook_hears_of_each_task_once_and_of_all_when_a_member_dies() {
    let receiver = Receiver::start();
    let url: &str = format!("http://{}/hook?of=mesh", receiver.address).leak();
    let plan = Plan { shards: 4, ..Plan::of(3, 2) };
    let plan = plan.env("MIROIR_TASKS__WEBHOOK_URL", url).env("MIROIR_TASKS__WEBHOOK_AUTHORIZATION", SECRET);
    let mut mesh = Mesh::start(plan);
    mesh.client(0).done("POST", "/indexes", &json!({"uid": "books", "primaryKey": "id"}));
    mesh.client(1).done("PATCH", "/indexes/books/settings", &json!({"sortableAttributes": ["id"]}));

    let first = write(&mesh, &[0, 1, 2], 6);
    assert_eq!(homes(&first) as u64, HOMES, "tasks of all homes: {first:?}");
    let shown = ended(&mesh, 2, &first);
    receiver.wait_told(&first);
    // A home makes one call after the other: what it tells of these comes behind whatever it might tell again of those.
    let second = write(&mesh, &[2, 1, 0], 6);
    assert_eq!(homes(&second) as u64, HOMES, "tasks of all homes: {second:?}");
    receiver.wait_told(&second);
    let told = receiver.told();
    for (uid, task) in &shown {
        assert_eq!(told[uid], std::slice::from_ref(task), "once, and as it is shown");
    }
    let page = mesh.client(0).get("/tasks?limit=1000").expect(200);
    let all: BTreeSet<u64> =
        page["results"].as_array().unwrap().iter().map(|task| task["uid"].as_u64().unwrap()).collect();
    assert_eq!(told.keys().copied().collect::<BTreeSet<_>>(), all, "orders as well, and nothing but tasks");
    assert!(told.values().all(|times| times.len() == 1), "{told:?}");

    // Some are under way when it dies, and their homes may have been its own.
    let mut third = write(&mesh, &[0, 1, 2], 3);
    mesh.sidecar(2).kill();
    third.extend(write(&mesh, &[0, 1], 6));
    assert_eq!(homes(&third) as u64, HOMES, "tasks of all homes: {third:?}");
    let shown = ended(&mesh, 1, &third);
    receiver.wait_told(&third);
    let told = receiver.told();
    for (uid, task) in &shown {
        assert!(told[uid].iter().all(|one| one == task), "{:?}, not {task}", told[uid]);
    }
    let again = third.iter().filter(|uid| told[uid].len() > 1).count();
    say(&format!("{} tasks were told, {again} of those around a member's death more than once", told.len()));
}
