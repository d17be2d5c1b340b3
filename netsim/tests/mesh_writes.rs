//! Writes with real processes: clients that write the same documents through different members while primaries are killed and
//! stopped, and all members at once. Nothing acknowledged is lost, replicas end equal, tasks are answered by anybody.
//!
//! Every bound is twice what is promised, because tests share their machine with others. `MIROIR_TRIAL_KILLS` (10) says how
//! many primaries are killed.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Barrier, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use common::{Answer, Client, Dice, Mesh, Plan, say, wait_until};
use netsim::heard::{Attempt, End, judge};
use serde_json::{Value, json};

const ALL: [usize; 3] = [0, 1, 2];
const PATIENCE: Duration = Duration::from_secs(60);
const IDS: usize = 1_000;
/// Documents of one write, of different shards for the most part.
const AT_ONCE: usize = 5;
const PAUSE: Duration = Duration::from_millis(15);
/// Who did not answer is not asked for so long.
const SHUN: Duration = Duration::from_secs(1);
/// Twice the longest pause of writes after 99 of 100 kills.
const KILL_GAP: Duration = Duration::from_secs(4);
/// Twice the longest pause of writes after a member fell silent.
const SILENCE_GAP: Duration = Duration::from_secs(10);

/// Times that are taken mean nothing with another trial beside.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Three members with an index of 1,000 documents, whose shards all have a primary.
struct Books {
    mesh: Mesh,
    physical: String,
    /// The shard of each id.
    shards: Vec<usize>,
}

impl Books {
    fn start(plan: Plan) -> Self {
        let mesh = Mesh::start(plan);
        let client = mesh.client(0);
        client.done("POST", "/indexes", &json!({"uid": "books", "primaryKey": "id"}));
        let all: Vec<Value> = (0..IDS).map(|id| json!({ "id": id })).collect();
        client.done("POST", "/indexes/books/documents", &json!(all));
        let index = mesh.admin(0).get("/_miroir/indexes/books").expect(200);
        let physical = index["physical"].as_str().unwrap().to_owned();
        let mut books = Self { mesh, physical, shards: Vec::new() };
        wait_until("all copies in sync", PATIENCE, || books.is_whole(0, &ALL));
        // A task is finished without those who say that they do not serve.
        wait_until("every document on two nodes", PATIENCE, || {
            ALL.into_iter().flat_map(|m| books.stored(m).into_values()).map(|d| d.len()).sum::<usize>() == 2 * IDS
        });
        let mut shards = BTreeMap::new();
        for member in ALL {
            for (shard, documents) in books.stored(member) {
                shards.extend(documents.into_keys().map(|id| (id, shard)));
            }
        }
        books.shards = shards.into_values().collect();
        assert_eq!(books.shards.len(), IDS);
        books
    }

    /// The index's shards as member `i` sees them.
    fn view(&self, i: usize) -> Vec<Value> {
        let index = self.mesh.admin(i).get("/_miroir/indexes/books").expect(200);
        index["shards"].as_array().unwrap_or_else(|| panic!("no shards in {index}")).clone()
    }

    fn number(&self, id: &Value) -> usize {
        let found = self.mesh.members.iter().position(|m| *id == m.id);
        found.unwrap_or_else(|| panic!("{id} is no member"))
    }

    /// Whether, as member `i` sees it, all copies are in sync and each shard is led by one of these members only.
    fn is_whole(&self, i: usize, among: &[usize]) -> bool {
        let sound = |copy: &Value| copy["inSync"] == true && copy["rebuild"] == false;
        self.is_led(i, among) && self.view(i).iter().all(|s| s["replicas"].as_array().unwrap().iter().all(sound))
    }

    fn is_led(&self, i: usize, among: &[usize]) -> bool {
        self.view(i).iter().all(|shard| {
            let leads = |copy: &&Value| copy["leads"] == true;
            let leads: Vec<&Value> = shard["replicas"].as_array().unwrap().iter().filter(leads).collect();
            let is_one = matches!(leads[..], [copy] if copy["member"] == shard["primary"]);
            is_one && among.contains(&self.number(&shard["primary"]))
        })
    }

    /// Whether by the record, as member `i` has it, one of these members is primary of each shard.
    fn is_led_by_record(&self, i: usize, among: &[usize]) -> bool {
        let primaries = self.primaries(i);
        among.iter().map(|m| primaries[*m].len()).sum::<usize>() == self.mesh.plan.shards
    }

    /// The shards that each member is primary of, by the record.
    fn primaries(&self, i: usize) -> [BTreeSet<usize>; 3] {
        let mut out: [BTreeSet<usize>; 3] = Default::default();
        for (shard, state) in self.view(i).iter().enumerate().filter(|(_, state)| !state["primary"].is_null()) {
            out[self.number(&state["primary"])].insert(shard);
        }
        out
    }

    /// Who holds the lease of `shard_leaders`, as member `i` knows.
    fn shard_leader(&self, i: usize) -> usize {
        let leases = self.mesh.admin(i).get("/_miroir/leases").expect(200);
        let all = leases["leases"].as_array().unwrap();
        self.number(&all.iter().find(|l| l["scope"] == "shard_leaders").unwrap()["holder"])
    }

    /// What a node itself has of each shard: documents by id, without the shard's mark.
    fn stored(&self, member: usize) -> BTreeMap<usize, BTreeMap<u64, Value>> {
        let client = self.mesh.node_client(member);
        let path = format!("/indexes/{}/documents?limit=100000", self.physical);
        let answer = client.get(&path);
        let mut out: BTreeMap<usize, BTreeMap<u64, Value>> = BTreeMap::new();
        if answer.status == 404 {
            return out;
        }
        for document in answer.expect(200)["results"].as_array().unwrap() {
            let mut document = document.clone();
            let mark = document.as_object_mut().unwrap().remove("_miroir_shard");
            let mark = mark.as_ref().and_then(Value::as_str).and_then(|s| s.chars().next());
            let shard = mark.map(|c| u32::from(c) - 0xa000).unwrap_or_else(|| panic!("no shard in {document}"));
            let id = document["id"].as_u64().unwrap();
            assert!(out.entry(shard as usize).or_default().insert(id, document).is_none());
        }
        out
    }

    /// Waits until all copies of each shard are the same; gives all documents.
    #[track_caller]
    fn settled(&self) -> Vec<Value> {
        wait_until("all copies in sync", PATIENCE, || self.is_whole(0, &ALL));
        let began = Instant::now();
        loop {
            let view = self.view(0);
            let stored = ALL.map(|member| self.stored(member));
            let mut unlike = Vec::new();
            let mut documents = BTreeMap::new();
            for (shard, state) in view.iter().enumerate() {
                let holders = state["replicas"].as_array().unwrap();
                let holders: Vec<usize> = holders.iter().map(|copy| self.number(&copy["member"])).collect();
                let others = ALL.iter().filter(|m| !holders.contains(m));
                others.for_each(|m| assert!(!stored[*m].contains_key(&shard), "m{} has shard {shard}", m + 1));
                let none = BTreeMap::new();
                let copies: Vec<_> = holders.iter().map(|m| stored[*m].get(&shard).unwrap_or(&none)).collect();
                for (copy, holder) in copies.iter().zip(&holders) {
                    let ids: BTreeSet<u64> = copies[0].keys().chain(copy.keys()).copied().collect();
                    let unlike_ids = ids.into_iter().filter(|id| copies[0].get(id) != copy.get(id));
                    unlike.extend(unlike_ids.map(|id| {
                        let [a, b] = [copies[0], copy].map(|copy| copy.get(&id).cloned().unwrap_or_default());
                        format!("shard {shard}: m{} {a}, m{} {b}", holders[0] + 1, holder + 1)
                    }));
                }
                documents.extend(copies[0].iter().map(|(id, document)| (*id, document.clone())));
            }
            if unlike.is_empty() {
                // And the mesh shows just these.
                let shown = self.mesh.client(1).get("/indexes/books/documents?limit=100000").expect(200);
                let shown = shown["results"].as_array().unwrap().iter().map(|d| (d["id"].as_u64().unwrap(), d.clone()));
                assert_eq!(shown.collect::<BTreeMap<_, _>>(), documents);
                return documents.into_values().collect();
            }
            let few = unlike[..unlike.len().min(5)].join("\n");
            assert!(began.elapsed() < PATIENCE, "{} documents differ between replicas:\n{few}", unlike.len());
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// Waits until these tasks are finished, by lists at `member`; gives uid and status of each.
    #[track_caller]
    fn finished(&self, member: usize, uids: &[u64]) -> BTreeMap<u64, String> {
        let client = self.mesh.client(member);
        let mut out = BTreeMap::new();
        for some in uids.chunks(200) {
            let list: Vec<String> = some.iter().map(u64::to_string).collect();
            let path = format!("/tasks?limit=200&uids={}", list.join(","));
            let began = Instant::now();
            loop {
                let page = client.get(&path).expect(200);
                let tasks = page["results"].as_array().unwrap();
                let is_open = |task: &&Value| task["status"] == "enqueued" || task["status"] == "processing";
                let open: Vec<&Value> = tasks.iter().filter(is_open).collect();
                if tasks.len() == some.len() && open.is_empty() {
                    let of = |t: &Value| (t["uid"].as_u64().unwrap(), t["status"].as_str().unwrap().to_owned());
                    out.extend(tasks.iter().map(of));
                    break;
                }
                let (found, asked, open_count) = (tasks.len(), some.len(), open.len());
                assert!(
                    began.elapsed() < PATIENCE,
                    "{found} of {asked} tasks are listed, {open_count} not finished: {:?}",
                    open.first()
                );
                std::thread::sleep(Duration::from_millis(100));
            }
        }
        out
    }
}

/// Clients that write on and on, each its own field of the same documents, and what they have heard.
struct Writers {
    addresses: Vec<SocketAddr>,
    template: Client,
    stop: AtomicBool,
    taken: AtomicUsize,
    heard: Mutex<Vec<Attempt>>,
    wrong: Mutex<Vec<String>>,
}

impl Writers {
    /// Does `work` while clients write, each preferably through its own member of `through`; gives what they heard.
    fn during(books: &mut Books, through: &[usize], work: impl FnOnce(&mut Books, &Self)) -> Vec<Attempt> {
        let writers = Self {
            addresses: books.mesh.members.iter().map(|m| m.http).collect(),
            template: books.mesh.client(0),
            stop: AtomicBool::new(false),
            taken: AtomicUsize::new(0),
            heard: Mutex::default(),
            wrong: Mutex::default(),
        };
        std::thread::scope(|scope| {
            for (client, member) in through.iter().enumerate() {
                let writers = &writers;
                scope.spawn(move || writers.write(client, *member));
            }
            // Ends them also if the work fails.
            let _stop = Stop(&writers.stop);
            writers.more(50);
            work(books, &writers);
            writers.more(50);
        });
        let wrong = writers.wrong.into_inner().unwrap();
        assert!(wrong.is_empty(), "{} writes went wrong: {:?}", wrong.len(), &wrong[..wrong.len().min(5)]);
        writers.heard.into_inner().unwrap()
    }

    /// Waits for so many acknowledged writes more.
    #[track_caller]
    fn more(&self, count: usize) {
        let before = self.taken.load(Ordering::SeqCst);
        let is_enough = || self.taken.load(Ordering::SeqCst) >= before + count;
        wait_until("acknowledged writes", PATIENCE, is_enough);
    }

    fn write(&self, client: usize, own: usize) {
        let mut dice = Dice::new(client as u64 + 1);
        let mut shunned: Vec<Option<Instant>> = vec![None; self.addresses.len()];
        for number in 1.. {
            if self.stop.load(Ordering::SeqCst) {
                return;
            }
            let mut ids = BTreeSet::new();
            while ids.len() < AT_ONCE {
                ids.insert(dice.below(IDS) as u64);
            }
            let mut order = (0..self.addresses.len()).map(|i| (own + i) % self.addresses.len());
            let is_shunned = |m: usize| shunned[m].is_some_and(|since: Instant| since.elapsed() < SHUN);
            let at = order.find(|m| !is_shunned(*m)).unwrap_or(own);
            let sent = Instant::now();
            let ended = put(&Client { address: self.addresses[at], ..self.template.clone() }, client, number, &ids);
            let end = ended.unwrap_or_else(|what| {
                self.wrong.lock().unwrap().push(what);
                End::Unknown(None)
            });
            match &end {
                End::Taken(_) => drop(self.taken.fetch_add(1, Ordering::SeqCst)),
                End::Refused(_) | End::Unknown(_) | End::GivenUp => shunned[at] = Some(Instant::now()),
            }
            let attempt = Attempt { client, number, ids, at, sent, ended: Instant::now(), end };
            self.heard.lock().unwrap().push(attempt);
            std::thread::sleep(PAUSE);
        }
    }
}

struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// One write: each document gets the number in the client's own field, and in one that all share.
fn put(client: &Client, who: usize, number: u64, ids: &BTreeSet<u64>) -> Result<End, String> {
    let field = format!("c{who}");
    let document = |id: &u64| json!({"id": id, &*field: number, "newest": format!("{who}-{number}")});
    let body = json!(ids.iter().map(document).collect::<Vec<_>>()).to_string();
    let headers = [("content-type", "application/json")];
    let answer = match client.try_call("PUT", "/indexes/books/documents", &headers, body.as_bytes()) {
        Ok(answer) => answer,
        Err(e) if e.kind() == std::io::ErrorKind::ConnectionRefused => return Ok(End::Refused(e.to_string())),
        // Its own patience, not the other side: a member that stands still goes on with it later.
        Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => return Ok(End::GivenUp),
        Err(_) => return Ok(End::Unknown(None)),
    };
    let said = answer.json();
    match (answer.status, said["code"].as_str()) {
        (202, _) => Ok(End::Taken(said["taskUid"].as_u64().ok_or_else(|| format!("no task in {said}"))?)),
        (504, Some("miroir_write_unknown")) => Ok(End::Unknown(said["taskUid"].as_u64())),
        (503, Some(code)) => Ok(End::Refused(format!("{code}: {}", said["message"]))),
        _ => Err(format!("{} {}", answer.status, answer.text())),
    }
}

/// A single write of a client of its own.
fn once(client: &Client, at: usize, who: usize) -> Attempt {
    let ids: BTreeSet<u64> = (0..AT_ONCE).map(|i| ((who * 37 + i * 101) % IDS) as u64).collect();
    let sent = Instant::now();
    let end = put(client, who, 1, &ids).unwrap();
    Attempt { client: who, number: 1, ids, at, sent, ended: Instant::now(), end }
}

/// Every acknowledged write is there, or was written over by a later one of its client; nothing refused is there.
#[track_caller]
fn assert_nothing_lost(heard: &[Attempt], documents: &[Value]) {
    let documents: BTreeMap<u64, &Value> = documents.iter().map(|d| (d["id"].as_u64().unwrap(), d)).collect();
    let judged = judge(heard, |id, client| documents.get(&id)?[format!("c{client}")].as_u64());
    let count = |is: fn(&Attempt) -> bool| heard.iter().filter(|a| is(a)).count();
    let refusals: BTreeSet<&str> =
        heard.iter().filter_map(|a| if let End::Refused(why) = &a.end { Some(why.as_str()) } else { None }).collect();
    say(&format!(
        "{} writes acknowledged, {} refused, {} unknown; refusals: {refusals:?}",
        count(Attempt::is_taken),
        count(|a| matches!(a.end, End::Refused(_))),
        count(Attempt::is_unknown),
    ));
    match judged {
        Ok(sound) => say(&format!("unknown writes that came behind an acknowledged one: {:?}", sound.late)),
        Err(faults) => panic!("{} are wrong, first: {}", faults.len(), faults[..faults.len().min(3)].join("\n")),
    }
}

/// Tasks of all acknowledged writes have succeeded; those of unknown ones have ended.
#[track_caller]
fn assert_tasks_done(books: &Books, heard: &[Attempt]) {
    let taken: Vec<u64> =
        heard.iter().filter_map(|a| if let End::Taken(uid) = a.end { Some(uid) } else { None }).collect();
    assert_eq!(taken.iter().collect::<BTreeSet<_>>().len(), taken.len(), "no task id is given twice");
    let failed: Vec<_> = books.finished(2, &taken).into_iter().filter(|(_, s)| s != "succeeded").collect();
    assert!(failed.is_empty(), "{} tasks of acknowledged writes: {:?}", failed.len(), &failed[..failed.len().min(5)]);
    let unknown: Vec<u64> =
        heard.iter().filter_map(|a| if let End::Unknown(uid) = a.end { uid } else { None }).collect();
    books.finished(1, &unknown);
}

/// The longest pause of acknowledged writes to any of these shards, of those that end between two instants.
fn gap(of: &[usize], heard: &[Attempt], shards: &BTreeSet<usize>, from: Instant, until: Instant) -> Duration {
    let mut longest = Duration::ZERO;
    for shard in shards {
        let touches = |a: &&Attempt| a.ids.iter().any(|id| of[usize::try_from(*id).unwrap()] == *shard);
        let taken = heard.iter().filter(|a| a.is_taken()).filter(touches);
        let mut acknowledged: Vec<Instant> = taken.map(|a| a.ended).filter(|at| *at <= until).collect();
        acknowledged.push(until);
        acknowledged.sort_unstable();
        let pauses = acknowledged.windows(2).filter(|pair| pair[1] > from).map(|pair| pair[1] - pair[0]);
        longest = longest.max(pauses.max().unwrap_or_default());
    }
    longest
}

fn kills() -> usize {
    std::env::var("MIROIR_TRIAL_KILLS").ok().map_or(10, |n| n.parse().expect("MIROIR_TRIAL_KILLS is a number"))
}

/// Sorted, in milliseconds.
fn milliseconds(mut times: Vec<Duration>) -> Vec<u128> {
    times.sort_unstable();
    times.iter().map(Duration::as_millis).collect()
}

#[test]
fn killed_primaries_lose_no_acknowledged_write_and_are_replaced_in_time() {
    let _alone = alone();
    let mut books = Books::start(Plan::of(3, 2));
    let (kills, mut leaders) = (kills(), 0);
    let (mut rounds, mut returned) = (Vec::new(), Vec::new());
    let heard = Writers::during(&mut books, &[0, 1], |books, writers| {
        for round in 0..kills {
            let primaries = books.primaries(round % 3);
            let leader = books.shard_leader(round % 3);
            let most = ALL.into_iter().max_by_key(|m| primaries[*m].len()).unwrap();
            let victim = if round % 3 == 2 { leader } else { most };
            leaders += usize::from(victim == leader);
            let others: Vec<usize> = ALL.into_iter().filter(|m| *m != victim).collect();
            let killed = Instant::now();
            books.mesh.sidecar(victim).kill();
            wait_until("other primaries", PATIENCE, || books.is_led(others[0], &others));
            writers.more(30);
            let back = Instant::now();
            books.mesh.start_sidecar(victim);
            books.mesh.wait_whole();
            wait_until("all copies in sync", PATIENCE, || books.is_whole(others[0], &ALL));
            returned.push(back.elapsed());
            writers.more(30);
            rounds.push((primaries[victim].clone(), killed, Instant::now()));
        }
    });
    assert!(leaders > 0 || kills < 3, "the leader of elections was among those killed");
    let of =
        |(shards, from, until): &(BTreeSet<usize>, Instant, Instant)| gap(&books.shards, &heard, shards, *from, *until);
    let gaps = milliseconds(rounds.iter().filter(|(shards, ..)| !shards.is_empty()).map(of).collect());
    say(&format!("pauses of writes in ms, {kills} kills, {leaders} of them of the leader of elections: {gaps:?}"));
    say(&format!("in sync again in ms: {:?}", milliseconds(returned)));
    assert_tasks_done(&books, &heard);
    assert_nothing_lost(&heard, &books.settled());
    let p99 = gaps[(gaps.len() * 99).div_ceil(100) - 1];
    assert!(p99 <= KILL_GAP.as_millis(), "{gaps:?}");
}

#[test]
fn a_stopped_primary_is_replaced_and_nothing_of_it_counts_when_it_goes_on() {
    let _alone = alone();
    let mut books = Books::start(Plan::of(3, 2));
    let primaries = books.primaries(0);
    let victim = ALL.into_iter().max_by_key(|m| primaries[*m].len()).unwrap();
    let others: Vec<usize> = ALL.into_iter().filter(|m| *m != victim).collect();
    let (mut times, mut stale) = (Vec::new(), Vec::new());
    let mut heard = Writers::during(&mut books, &[others[0], others[1], victim], |books, writers| {
        for round in 1..=2 {
            let primaries = books.primaries(others[0])[victim].clone();
            let stopped = Instant::now();
            books.mesh.sidecar(victim).pause();
            let client = books.mesh.client(victim);
            std::thread::scope(|scope| {
                // It reads them when it goes on, and takes itself for the primary that it was.
                let write = |who: usize| {
                    scope.spawn({
                        let client = client.clone();
                        move || once(&client, victim, who)
                    })
                };
                let waiting: Vec<_> = (0..20).map(|i| write(round * 100 + i)).collect();
                wait_until("other primaries", PATIENCE, || books.is_led_by_record(others[0], &others));
                writers.more(100);
                times.push((primaries, stopped, Instant::now()));
                books.mesh.sidecar(victim).resume();
                stale.extend(waiting.into_iter().map(|write| write.join().unwrap()));
            });
            books.mesh.wait_whole();
            wait_until("all copies in sync", PATIENCE, || books.is_whole(others[0], &ALL));
            // Preferred primaries return.
            wait_until("a primary again", PATIENCE, || !books.primaries(others[0])[victim].is_empty());
            writers.more(30);
        }
    });
    let of =
        |(shards, from, until): &(BTreeSet<usize>, Instant, Instant)| gap(&books.shards, &heard, shards, *from, *until);
    let gaps = milliseconds(times.iter().map(of).collect());
    say(&format!("pauses of writes in ms while a primary was stopped: {gaps:?}"));
    heard.extend(stale);
    assert_tasks_done(&books, &heard);
    assert_nothing_lost(&heard, &books.settled());
    assert!(gaps.iter().all(|gap| *gap <= SILENCE_GAP.as_millis()), "{gaps:?}");
}

#[test]
fn all_members_killed_at_once_under_load_lose_nothing() {
    let _alone = alone();
    let mut books = Books::start(Plan::of(3, 2));
    let heard = Writers::during(&mut books, &ALL, |books, writers| {
        for _ in 0..2 {
            writers.more(150);
            for i in ALL {
                books.mesh.sidecar(i).kill();
                books.mesh.node(i).kill();
            }
            let began = Instant::now();
            ALL.into_iter().for_each(|i| books.mesh.start_node(i));
            ALL.into_iter().for_each(|i| books.mesh.start_sidecar(i));
            books.mesh.wait_whole();
            wait_until("all copies in sync", PATIENCE, || books.is_whole(0, &ALL));
            say(&format!("all killed: a whole mesh, led and in sync, after {} ms", began.elapsed().as_millis()));
        }
    });
    assert_tasks_done(&books, &heard);
    assert_nothing_lost(&heard, &books.settled());
}

/// Posts documents under a key at both members at the same moment.
fn at_once(clients: [&Client; 2], key: &str, bodies: [&Value; 2]) -> [Answer; 2] {
    let barrier = Barrier::new(2);
    let post = |i: usize| {
        let body = bodies[i].to_string();
        barrier.wait();
        let headers = [("content-type", "application/json"), ("idempotency-key", key)];
        clients[i].call("POST", "/indexes/books/documents", &headers, body.as_bytes())
    };
    std::thread::scope(|scope| {
        let other = scope.spawn(|| post(1));
        [post(0), other.join().unwrap()]
    })
}

#[test]
fn a_key_stands_for_one_write_whoever_is_asked() {
    let _alone = alone();
    let mut books = Books::start(Plan::of(3, 2));
    let clients = ALL.map(|i| books.mesh.client(i));
    let mut tasks = Vec::new();
    for i in 0..20 {
        let (key, body) = (format!("same-{i}"), json!([{"id": IDS + i, "title": i}, {"id": i, "title": i}]));
        let answers = at_once([&clients[i % 3], &clients[(i + 1) % 3]], &key, [&body, &body]);
        let uids = answers.map(|a| a.expect(202)["taskUid"].as_u64().unwrap());
        assert_eq!(uids[0], uids[1], "{key}");
        tasks.push((key, body, uids[0]));
    }
    assert_eq!(tasks.iter().map(|t| t.2).collect::<BTreeSet<_>>().len(), tasks.len());
    let mut which = BTreeSet::new();
    for i in 0..20 {
        let body = |title: usize| json!([{"id": 2 * IDS + i, "title": title}]);
        let answers = at_once([&clients[i % 3], &clients[(i + 1) % 3]], &format!("other-{i}"), [&body(0), &body(1)]);
        let first = usize::from(answers[0].status != 202);
        answers[1 - first].expect_error(409, "miroir_idempotency_key_reused");
        clients[2].finished(&answers[first]);
        let stored = clients[0].get(&format!("/indexes/books/documents/{}", 2 * IDS + i)).expect(200);
        assert_eq!(stored["title"], first, "{:?}", answers[first]);
        which.insert(first);
    }
    say(&format!("of two bodies under one key these came first: {which:?}"));
    for gone in ALL {
        books.mesh.sidecar(gone).kill();
        for (i, (key, body, uid)) in tasks.iter().enumerate() {
            let client = &clients[(gone + 1 + i % 2) % 3];
            let headers = [("content-type", "application/json"), ("idempotency-key", key.as_str())];
            let post =
                |body: &Value| client.call("POST", "/indexes/books/documents", &headers, body.to_string().as_bytes());
            assert_eq!(post(body).expect(202)["taskUid"], *uid, "{key}");
            post(&json!([{"id": 1}])).expect_error(409, "miroir_idempotency_key_reused");
        }
        books.mesh.start_sidecar(gone);
        books.mesh.wait_whole();
        wait_until("all copies in sync", PATIENCE, || books.is_whole(0, &ALL));
    }
    let uids: Vec<u64> = tasks.iter().map(|t| t.2).collect();
    assert!(books.finished(0, &uids).values().all(|status| status == "succeeded"));
    assert_eq!(books.settled().len(), IDS + 20 + 20);
}

/// Lists that every member must answer alike.
fn lists(newest: u64) -> Vec<String> {
    let filters = [
        "limit=1000",
        "limit=4",
        "statuses=failed",
        "types=documentAdditionOrUpdate,documentDeletion&limit=7",
        "indexUids=books&reverse=true&limit=5",
        "afterEnqueuedAt=2020-01-01&limit=3",
        "beforeEnqueuedAt=2020-01-01",
        "canceledBy=1",
        "statuses=succeeded&types=settingsUpdate",
    ];
    let more = [format!("limit=3&from={}", newest / 2), format!("uids={newest},{},1000000", newest - 1)];
    let pages = filters.into_iter().map(str::to_owned).chain(more);
    pages.flat_map(|page| [format!("/tasks?{page}"), format!("/batches?{page}")]).collect()
}

/// All tasks, page by page.
fn paged(client: &Client, newest: u64) -> Vec<u64> {
    let (mut out, mut from) = (Vec::new(), newest);
    loop {
        let page = client.get(&format!("/tasks?limit=4&from={from}")).expect(200);
        out.extend(page["results"].as_array().unwrap().iter().map(|t| t["uid"].as_u64().unwrap()));
        match page["next"].as_u64() {
            Some(next) => from = next,
            None => return out,
        }
    }
}

#[test]
fn any_member_answers_for_any_task_whoever_is_lost() {
    let _alone = alone();
    let mut books = Books::start(Plan::of(3, 2));
    let clients = ALL.map(|i| books.mesh.client(i));
    let documents = "/indexes/books/documents";
    clients[0].done("PUT", "/indexes/books/settings/filterable-attributes", &json!(["genre"]));
    for i in 0..12 {
        let (client, body) = (&clients[i % 3], json!([{"id": i, "genre": "a"}, {"id": i + 50}]));
        client.done("POST", &format!("{documents}?customMetadata=m{i}"), &body);
        client.done("POST", &format!("{documents}/delete-batch"), &json!([i + 100, i + 200]));
    }
    clients[1].done("POST", &format!("{documents}/delete"), &json!({"filter": "genre = a"}));
    let failed = clients[2].json("POST", &format!("{documents}/delete"), &json!({"filter": "size = 1"}));
    let failed = clients[0].finished(&failed);
    assert_eq!(failed["status"], "failed", "{failed}");
    let newest = failed["uid"].as_u64().unwrap();

    let all = clients[0].get("/tasks?limit=1000").expect(200);
    let uids: Vec<u64> = all["results"].as_array().unwrap().iter().map(|t| t["uid"].as_u64().unwrap()).collect();
    assert!(uids.len() >= 29 && uids.is_sorted_by(|a, b| a > b), "{uids:?}");
    let of_each = uids.iter().flat_map(|u| [format!("/tasks/{u}"), format!("/batches/{u}")]);
    let paths: Vec<String> = lists(newest).into_iter().chain(of_each).collect();
    let said: Vec<Value> = paths.iter().map(|path| clients[0].get(path).expect(200)).collect();
    let assert_alike = |client: &Client| {
        for (path, said) in paths.iter().zip(&said) {
            assert_eq!(client.get(path).expect(200), *said, "{path} at {}", client.address);
        }
        assert_eq!(paged(client, newest), uids);
    };
    clients.iter().for_each(assert_alike);
    for gone in ALL {
        books.mesh.sidecar(gone).kill();
        books.mesh.node(gone).kill();
        let began = Instant::now();
        (1..3).for_each(|i| assert_alike(&clients[(gone + i) % 3]));
        say(&format!("without m{}: {} answers in {} ms", gone + 1, 2 * paths.len(), began.elapsed().as_millis()));
        books.mesh.start_node(gone);
        books.mesh.start_sidecar(gone);
        books.mesh.wait_whole();
        wait_until("all copies in sync", PATIENCE, || books.is_whole(0, &ALL));
    }
}

#[test]
fn tasks_are_canceled_and_deleted_for_all_members_and_no_acknowledged_write_is_taken_back() {
    let _alone = alone();
    let mut books = Books::start(Plan::of(3, 2));
    let clients = ALL.map(|i| books.mesh.client(i));
    let task = |i: usize, uid: &Value| clients[i].get(&format!("/tasks/{uid}")).expect(200);
    ALL.into_iter().for_each(|i| books.mesh.node(i).pause());
    let body: Vec<Value> = (0..50).map(|id| json!({"id": id, "late": true})).collect();
    let write = clients[0].json("PUT", "/indexes/books/documents", &json!(body));
    let uid = write.expect(202)["taskUid"].clone();
    for i in ALL {
        let status = task(i, &uid)["status"].clone();
        assert!(status == "enqueued" || status == "processing", "{status}");
    }
    let cancel = clients[1].call("POST", &format!("/tasks/cancel?uids={uid}"), &[], b"").expect(200);
    assert_eq!(cancel["type"], "taskCancelation");
    ALL.into_iter().for_each(|i| books.mesh.node(i).resume());
    wait_until("the cancelation", PATIENCE, || task(2, &cancel["taskUid"])["status"] == "succeeded");
    let details = task(0, &cancel["taskUid"])["details"].clone();
    assert_eq!((&details["matchedTasks"], &details["canceledTasks"]), (&json!(1), &json!(0)), "{details}");
    let done = clients[1].finished(&write);
    assert_eq!((&done["status"], &done["details"]["indexedDocuments"]), (&json!("succeeded"), &json!(50)), "{done}");
    assert_eq!(books.settled().iter().filter(|d| d["late"] == true).count(), 50);

    let before = clients[0].get("/tasks?limit=1").expect(200)["total"].clone();
    let delete = clients[1].call("DELETE", &format!("/tasks?uids={uid}"), &[], b"").expect(200);
    assert_eq!(delete["type"], "taskDeletion");
    wait_until("the deletion", PATIENCE, || task(2, &delete["taskUid"])["status"] == "succeeded");
    let assert_gone = |i: usize| {
        clients[i].get(&format!("/tasks/{uid}")).expect_error(404, "task_not_found");
        let total = clients[i].get("/tasks?limit=1").expect(200)["total"].clone();
        assert_eq!(total, before, "one more and one less");
        assert_eq!(task(i, &delete["taskUid"])["details"]["deletedTasks"], 1);
    };
    ALL.into_iter().for_each(assert_gone);
    books.mesh.sidecar(1).kill();
    [0, 2].into_iter().for_each(assert_gone);
}
