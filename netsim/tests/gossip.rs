//! How fast a new lease is known by gossip, and what that costs: 100 real chitchat instances over chitchat's in-memory
//! transport, in virtual time, with what members of a mesh say of themselves.
//!
//! Time stands still while anybody works, so a slow machine shows the same.

use std::time::Duration;

use chitchat::transport::ChannelTransport;
use chitchat::{ChitchatConfig, ChitchatHandle, ChitchatId, FailureDetectorConfig, spawn_chitchat};
use miroir::types::{Epoch, GroupId, IndexUid, LeaseSign, MemberId, Scope};
use miroir::wire::gossip::{MemberGossip, MemberState};
use tokio::time::{Instant, sleep};

const MEMBERS: u16 = 100;
/// `gossip_interval_ms` and `renew_interval_s`, as they are by default.
const INTERVAL: Duration = Duration::from_secs(1);
const RENEW: Duration = Duration::from_secs(3);
/// Within this everybody must know.
const KNOWN_WITHIN: Duration = Duration::from_secs(3);

fn sign(scope: Scope, renewal: u64) -> LeaseSign {
    LeaseSign { scope, epoch: Epoch::new(7).unwrap(), start: 3, renewal }
}

fn member(n: u16) -> MemberId {
    MemberId::new(format!("search-{n}")).unwrap()
}

/// What a member says, with the leases that it holds: that it lives, and perhaps others.
fn said(n: u16, renewal: u64, more: &[Scope]) -> Vec<(String, String)> {
    let mut leases = vec![sign(Scope::Alive(member(n)), renewal)];
    leases.extend(more.iter().map(|scope| sign(scope.clone(), renewal)));
    let own = MemberGossip {
        http: format!("10.0.{}.{}:7700", n / 256, n % 256),
        mesh: format!("10.0.{}.{}:7701", n / 256, n % 256),
        group: Some(GroupId::new("g1").unwrap()),
        version: "0.1.0".to_owned(),
        protocol: 1,
        state: MemberState::Active,
        node_healthy: true,
        node_version: Some("1.50.0".to_owned()),
        load: u32::from(n),
        records_digest: "0123456789abcdef".to_owned(),
        started_at: "2026-01-01T00:00:00Z".to_owned(),
        leases,
        ..MemberGossip::default()
    };
    own.to_pairs().unwrap().into_iter().map(|(k, v)| (k.to_owned(), v)).collect()
}

async fn publish(handle: &ChitchatHandle, n: u16, renewal: u64, more: &[Scope]) {
    let pairs = said(n, renewal, more);
    handle
        .with_chitchat(|chitchat| {
            for (key, value) in &pairs {
                chitchat.self_node_state().set(key, value);
            }
        })
        .await;
}

/// How many members know of this lease by what they have heard.
async fn knowing(handles: &[ChitchatHandle], holder: u16, scope: &Scope) -> usize {
    let mut count = 0;
    for handle in handles {
        let knows = handle
            .with_chitchat(|chitchat| {
                let id = member(holder);
                let state = chitchat.node_states().iter().find(|(of, _)| *of.node_id == *id.as_str());
                let said = state.map(|(_, state)| MemberGossip::from_pairs(state.key_values()).0);
                said.is_some_and(|s| s.leases.iter().any(|sign| sign.scope == *scope))
            })
            .await;
        count += usize::from(knows);
    }
    count
}

#[tokio::test(start_paused = true)]
async fn a_new_lease_is_known_to_a_hundred_members_within_three_seconds() {
    let transport = ChannelTransport::default();
    let address = |n: u16| std::net::SocketAddr::from(([127, 0, 0, 1], 10_000 + n));
    let mut rng = fastrand::Rng::with_seed(1);
    let mut handles = Vec::new();
    for n in 0..MEMBERS {
        // Rounds of different members do not begin at the same instant.
        sleep(Duration::from_millis(rng.u64(1..20))).await;
        let config = ChitchatConfig {
            chitchat_id: ChitchatId::new(member(n).as_str(), 3, address(n)),
            cluster_id: "m".repeat(32),
            gossip_interval: INTERVAL,
            listen_addr: address(n),
            seed_nodes: (0..MEMBERS).filter(|m| *m != n).map(|m| address(m).to_string()).collect(),
            failure_detector_config: FailureDetectorConfig {
                initial_interval: INTERVAL * 2,
                max_interval: INTERVAL * 10,
                ..FailureDetectorConfig::default()
            },
            marked_for_deletion_grace_period: Duration::from_secs(3_600),
            catchup_callback: None,
            extra_liveness_predicate: None,
        };
        handles.push(spawn_chitchat(config, said(n, 1, &[]), &transport).await.unwrap());
    }
    sleep(Duration::from_secs(40)).await;
    for n in 0..MEMBERS {
        let knowing = knowing(&handles, n, &Scope::Alive(member(n))).await;
        assert_eq!(knowing, usize::from(MEMBERS), "who knows that member {n} lives");
    }

    // Everybody renews, and now and then somebody holds a lease that nobody held before.
    let mut took = Vec::new();
    let (bytes, began) = (transport.statistics(), Instant::now());
    for round in 0..10 {
        let renewal = 2 + round;
        let holder = rng.u16(..MEMBERS);
        let scope = Scope::AliasFlip(IndexUid::new(format!("products{round}")).unwrap());
        for n in 0..MEMBERS {
            let more: &[Scope] = if n == holder { std::slice::from_ref(&scope) } else { &[] };
            publish(&handles[usize::from(n)], n, renewal, more).await;
        }
        let held = Instant::now();
        while knowing(&handles, holder, &scope).await < handles.len() {
            assert!(held.elapsed() < 4 * KNOWN_WITHIN, "{:?}", held.elapsed());
            sleep(Duration::from_millis(20)).await;
        }
        took.push(held.elapsed());
        sleep(RENEW.saturating_sub(held.elapsed())).await;
    }
    let after = transport.statistics();
    let each = |total: u64| total as f64 / f64::from(MEMBERS) / began.elapsed().as_secs_f64();
    took.sort();
    println!(
        "known to {MEMBERS} members after {:.2} s to {:.2} s; {:.0} bytes and {:.1} messages a second and member",
        took[0].as_secs_f64(),
        took[took.len() - 1].as_secs_f64(),
        each(after.num_bytes_total - bytes.num_bytes_total),
        each(after.num_messages_total - bytes.num_messages_total),
    );
    assert!(took.iter().all(|t| *t <= KNOWN_WITHIN), "{took:?}");
}
