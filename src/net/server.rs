//! The other side: taking connections of peers, checking who they are, and answering their calls.
//!
//! Rules: nothing is served before the hello is checked against the certificate, the mesh and the list of members; a
//! handler runs only after the whole request has been read; whatever a peer claims, memory is used only for bytes that
//! have arrived. Probes are answered here on the mesh thread, reads by the handler on it as well, because a read only
//! passes bytes between peer and node; everything else by the handler on the main runtime. Must not know: what calls are
//! for.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use quinn::crypto::rustls::HandshakeData;
use quinn::{Connection, Endpoint, Incoming, RecvStream, VarInt};
use rustls::pki_types::CertificateDer;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;

use super::classes::Kind;
use super::client::{self, ReadFailure, Streams, priority, read_body, read_exactly};
use super::door::{Door, Entry};
use super::endpoint::{CONTROL_STREAMS_MAX, CloseCode, DATA_STREAMS_MAX, GOSSIP_STREAMS_MAX, ResetCode};
use super::memory::Held;
use super::peers::{MeshCounters, Peer, Shared};
use super::{Answer, Call, Handler, tls};
use crate::rt::Counted;
use crate::types::MemberId;
use crate::types::TraceId;
use crate::types::limits::{
    CALL_BODY_MAX_BYTES, CALL_HEADER_MAX_BYTES, GOSSIP_MESSAGE_MAX_BYTES, LEDGER_ENCODED_MAX_BYTES,
};
use crate::wire::codec;
use crate::wire::frame::{
    AnswerHead, HELLO_MAX_BYTES, Hello, PROTOCOL_VERSION, REQUEST_HEAD_BYTES, RequestHead, Welcome,
};
use crate::wire::gossip::Unreached;
use crate::wire::verbs::{Class, READ, Refusal, Reply, Request};

/// Handshake and hello, each.
const HELLO_TIMEOUT: Duration = Duration::from_secs(5);
/// A stream's head must have come by then.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// A gossip message must have come by then.
const GOSSIP_TIMEOUT: Duration = Duration::from_secs(5);
/// The longest that a call is worked on, whatever its caller says.
const DEADLINE_MAX: Duration = Duration::from_secs(600);
/// Largest body of a call of class control.
const CONTROL_BODY_MAX_BYTES: usize = LEDGER_ENCODED_MAX_BYTES;

/// The connections of peers, by member and kind.
#[derive(Default)]
pub(super) struct Inbound {
    open: Mutex<BTreeMap<(MemberId, Kind), (u64, Connection)>>,
    refusals: Seldom,
}

impl Inbound {
    /// Notes a connection. One of the same kind before it is closed, and all of an earlier process of the member.
    fn enter(&self, hello: &Hello, kind: Kind, connection: &Connection) -> Result<(), String> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let of_member = |(member, _): &(MemberId, Kind)| *member == hello.member;
        let latest = open.iter().filter(|(key, _)| of_member(key)).map(|(_, (start, _))| *start).max();
        if latest.is_some_and(|latest| hello.start < latest) {
            return Err(format!("start {} of {} is over: there is a later one", hello.start, hello.member));
        }
        open.retain(|key, (start, before)| {
            let over = of_member(key) && (*start < hello.start || key.1 == kind);
            if over {
                before.close(CloseCode::Replaced.into(), b"a newer connection takes its place");
            }
            !over
        });
        open.insert((hello.member.clone(), kind), (hello.start, connection.clone()));
        Ok(())
    }

    /// The member does not belong to the mesh any more.
    pub(super) fn dismiss(&self, member: &MemberId) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|(of, _), (_, connection)| {
            if of == member {
                connection.close(CloseCode::Refused.into(), b"no member of this mesh");
            }
            of != member
        });
    }

    fn leave(&self, member: &MemberId, kind: Kind, connection: &Connection) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (member.clone(), kind);
        // Another one may stand there by now.
        if open.get(&key).is_some_and(|(_, c)| c.stable_id() == connection.stable_id()) {
            open.remove(&key);
        }
    }
}

/// Lets one message of a kind through every now and then, so that a peer that is refused again and again does not
/// fill the log.
#[derive(Default)]
struct Seldom(Mutex<BTreeMap<String, Instant>>);

impl Seldom {
    const EVERY: Duration = Duration::from_secs(60);
    const KINDS_MAX: usize = 256;

    /// Whether this message has not been let through for a minute.
    fn allows(&self, message: &str) -> bool {
        let now = Instant::now();
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        seen.retain(|_, at| now.duration_since(*at) < Self::EVERY);
        if seen.len() >= Self::KINDS_MAX || seen.contains_key(message) {
            return false;
        }
        seen.insert(message.to_owned(), now);
        true
    }
}

/// Takes connections until the endpoint is closed.
pub(super) async fn accept(shared: Arc<Shared>, endpoint: Endpoint) {
    let door = Arc::new(Door::default());
    while let Some(incoming) = endpoint.accept().await {
        let from = incoming.remote_address().ip();
        // Who can't be asked for a proof has given one before.
        let proven = incoming.remote_address_validated() || !incoming.may_retry();
        let pass = match door.knock(from, shared.is_at(from), proven) {
            Entry::Open(pass) => pass,
            Entry::Prove => {
                // An error says that it can't be retried, and then it is dropped, which refuses it.
                let _ = incoming.retry();
                continue;
            }
            Entry::Shut => {
                incoming.ignore();
                continue;
            }
        };
        let shared = shared.clone();
        tokio::spawn(async move {
            let from = incoming.remote_address();
            match greet(&shared, incoming).await {
                Ok((peer, kind, connection)) => {
                    drop(pass);
                    peer.poke(Kind::Control).notify_one();
                    peer.poke(Kind::Data).notify_one();
                    serve(&shared, &peer, kind, &connection).await;
                    shared.inbound.leave(&peer.id, kind, &connection);
                }
                Err(reason) => {
                    MeshCounters::add(&shared.counters.refused_connections);
                    if shared.inbound.refusals.allows(&format!("{} {reason}", from.ip())) {
                        tracing::warn!(%from, reason, "a connection was refused");
                    }
                }
            }
        });
    }
    // Closed on purpose or, if nobody asked for it, because its socket has failed.
    tracing::info!(member = %shared.config.member, "no more connections are taken");
}

/// Handshake and hello: who is it, and does it belong here?
async fn greet(shared: &Shared, incoming: Incoming) -> Result<(Arc<Peer>, Kind, Connection), String> {
    let connecting = incoming.accept().map_err(|e| client::connection_reason(&e))?;
    let connection = match timeout(HELLO_TIMEOUT, connecting).await {
        Ok(Ok(connection)) => connection,
        Ok(Err(e)) => return Err(client::connection_reason(&e)),
        Err(_) => return Err("the handshake took too long".to_owned()),
    };
    let greeted = match timeout(HELLO_TIMEOUT, hear_hello(shared, &connection)).await {
        Ok(greeted) => greeted,
        Err(_) => Err("no hello came".to_owned()),
    };
    match greeted {
        Ok((peer, kind)) => Ok((peer, kind, connection)),
        Err(reason) => {
            connection.close(CloseCode::Refused.into(), reason.as_bytes());
            Err(reason)
        }
    }
}

async fn hear_hello(shared: &Shared, connection: &Connection) -> Result<(Arc<Peer>, Kind), String> {
    let kind = kind_of(connection)?;
    let (send, mut recv) = connection.accept_bi().await.map_err(|e| client::connection_reason(&e))?;
    let bytes =
        read_body(&mut recv, HELLO_MAX_BYTES, |_| true).await.map_err(|_| "the hello is cut short or too long")?;
    let hello = Hello::decode(&bytes).map_err(|e| e.to_string())?;
    let peer = check_hello(shared, connection, &hello)?;
    shared.inbound.enter(&hello, kind, connection)?;
    // The list may have changed since it was looked at; from here on a change finds the connection.
    if !shared.peer(&peer.id).is_some_and(|now| Arc::ptr_eq(&now, &peer)) {
        shared.inbound.leave(&peer.id, kind, connection);
        return Err(super::not_a_member(&peer.id));
    }
    peer.started(hello.start);
    let welcomed = welcome(shared, kind, connection, Streams::new(send, recv)).await;
    if welcomed.is_err() {
        shared.inbound.leave(&peer.id, kind, connection);
    }
    welcomed.map(|()| (peer, kind))
}

async fn welcome(shared: &Shared, kind: Kind, connection: &Connection, mut streams: Streams) -> Result<(), String> {
    let (calls, gossip) = match kind {
        Kind::Control => (CONTROL_STREAMS_MAX, GOSSIP_STREAMS_MAX),
        Kind::Data => (DATA_STREAMS_MAX, 0),
    };
    connection.set_max_concurrent_bi_streams(VarInt::from_u32(calls));
    connection.set_max_concurrent_uni_streams(VarInt::from_u32(gossip));
    let welcome = Welcome { version: PROTOCOL_VERSION, start: shared.config.start };
    streams.send.write_all(&welcome.encode()).await.map_err(|e| e.to_string())?;
    streams.send.finish().map_err(|e| e.to_string())?;
    streams.ended();
    Ok(())
}

fn kind_of(connection: &Connection) -> Result<Kind, String> {
    let data = connection.handshake_data().and_then(|d| d.downcast::<HandshakeData>().ok());
    match data.and_then(|d| d.protocol).as_deref() {
        Some(tls::ALPN_CONTROL) => Ok(Kind::Control),
        Some(tls::ALPN_DATA) => Ok(Kind::Data),
        _ => Err("unknown application protocol".to_owned()),
    }
}

/// The certificate was checked against the CA by the handshake; here it is checked against the claim.
fn check_hello(shared: &Shared, connection: &Connection, hello: &Hello) -> Result<Arc<Peer>, String> {
    if !hello.mesh.meets(shared.mesh_id()) {
        return Err(format!("{} belongs to another mesh ({})", hello.member, hello.mesh));
    }
    let certs = connection.peer_identity().and_then(|i| i.downcast::<Vec<CertificateDer<'static>>>().ok());
    let named = certs.as_ref().and_then(|c| c.first()).is_some_and(|cert| tls::names_member(cert, &hello.member));
    if !named {
        return Err(format!("its certificate does not name the member {}", hello.member));
    }
    if hello.member == shared.config.member {
        return Err(format!("{} is this member itself", hello.member));
    }
    let known = shared.peer(&hello.member);
    known.ok_or_else(|| super::not_a_member(&hello.member))
}

/// Serves a peer's connection until it ends.
async fn serve(shared: &Arc<Shared>, peer: &Arc<Peer>, kind: Kind, connection: &Connection) {
    let calls = async {
        while let Ok((send, recv)) = connection.accept_bi().await {
            tokio::spawn(serve_stream(shared.clone(), peer.clone(), kind, Streams::new(send, recv)));
        }
    };
    let gossip = async {
        while let Ok(recv) = connection.accept_uni().await {
            tokio::spawn(take_gossip(shared.clone(), peer.id.clone(), recv));
        }
    };
    tokio::join!(calls, gossip);
}

async fn take_gossip(shared: Arc<Shared>, from: MemberId, mut recv: RecvStream) {
    match timeout(GOSSIP_TIMEOUT, read_body(&mut recv, GOSSIP_MESSAGE_MAX_BYTES, |_| true)).await {
        Ok(Ok(message)) => {
            if shared.gossip_in.try_send((from, message)).is_err() {
                MeshCounters::add(&shared.counters.gossip_dropped);
            }
        }
        Ok(Err(ReadFailure::TooLarge { .. })) => MeshCounters::add(&shared.counters.gossip_malformed),
        // Gossip is repeated; what did not come is not missed.
        Ok(Err(_)) | Err(_) => {}
    }
    // A stream not read to its end is stopped by being dropped.
}

/// A call's stream: what stands in its head decides who goes on with it.
async fn serve_stream(shared: Arc<Shared>, peer: Arc<Peer>, kind: Kind, mut streams: Streams) {
    let mut head = [0; REQUEST_HEAD_BYTES];
    match timeout(HEAD_TIMEOUT, streams.recv.read_exact(&mut head)).await {
        Ok(Ok(())) => {}
        Ok(Err(_)) => return,
        Err(_) => {
            streams.on_drop = ResetCode::Deadline;
            return;
        }
    }
    let head = match RequestHead::decode(&head) {
        Ok(head) => head,
        Err(e) => return refuse(&shared, &peer, streams, Refusal::Malformed(e.to_string())).await,
    };
    if head.mesh != shared.mesh_id() && !Request::before_mesh(head.verb) {
        return refuse(&shared, &peer, streams, Refusal::WrongMesh).await;
    }
    let Some(class) = Request::class_of(head.verb) else {
        return refuse(&shared, &peer, streams, Refusal::UnknownVerb(head.verb)).await;
    };
    if head.verb == Request::Probe.verb() {
        let _ = streams.send.set_priority(priority(Class::Control) + 1);
        // Elections go by who reaches whom, and gossip takes its time.
        let unreached = Unreached::Some(shared.suspects.borrow().clone());
        let said = Answer { reply: Reply::Done, body: unreached.to_bytes().into() };
        return answer(&shared, &peer, streams, said).await;
    }
    if Kind::of(class) != kind {
        let on = format!("a call of class {} on the {} connection", class.as_str(), kind.as_str());
        return refuse(&shared, &peer, streams, Refusal::Malformed(on)).await;
    }
    let received = Instant::now();
    if head.verb == READ {
        // To change threads twice would cost more than the read itself.
        return serve_call(shared, peer, class, streams, head, received).await;
    }
    // Lost only when the main runtime is gone, and then nobody is there to answer.
    drop(shared.main.clone().spawn(serve_call(shared, peer, class, streams, head, received)));
}

async fn refuse(shared: &Shared, peer: &Peer, streams: Streams, refusal: Refusal) {
    MeshCounters::add(&shared.counters.refused_calls);
    tracing::debug!(peer = %peer.id, %refusal, "a call was refused");
    answer(shared, peer, streams, Answer::of(Reply::Refused(refusal))).await;
}

/// Writes an answer and ends the stream; the rest of the request is not read.
async fn answer(shared: &Shared, peer: &Peer, mut streams: Streams, answer: Answer) {
    // The caller is told so while it may still be writing; an error says that it has finished.
    let _ = streams.recv.stop(ResetCode::Enough.into());
    match timeout(DEADLINE_MAX, write_answer(&mut streams, answer)).await {
        Ok(Ok(())) => streams.ended(),
        Ok(Err(reason)) => tracing::debug!(peer = %peer.id, reason, "an answer was not taken"),
        Err(_) => tracing::debug!(peer = %peer.id, member = %shared.config.member, "an answer was not taken in time"),
    }
}

async fn write_answer(streams: &mut Streams, answer: Answer) -> Result<(), String> {
    let header = codec::encode("reply", &answer.reply, CALL_HEADER_MAX_BYTES).map_err(|e| e.to_string())?;
    let head = AnswerHead { version: PROTOCOL_VERSION, header_len: u32::try_from(header.len()).unwrap_or(u32::MAX) };
    let mut front = BytesMut::with_capacity(head.encode().len() + header.len());
    front.extend_from_slice(&head.encode());
    front.extend_from_slice(&header);
    streams.send.write_all_chunks(&mut [front.freeze(), answer.body]).await.map_err(|e| e.to_string())?;
    streams.send.finish().map_err(|e| e.to_string())
}

/// A call that is not a probe, until its deadline.
async fn serve_call(
    shared: Arc<Shared>,
    peer: Arc<Peer>,
    class: Class,
    mut streams: Streams,
    head: RequestHead,
    received: Instant,
) {
    let deadline = received + Duration::from_millis(head.deadline_ms.into()).min(DEADLINE_MAX);
    let work = read_and_handle(&shared, &peer, class, &mut streams, &head, deadline);
    match tokio::time::timeout_at(deadline.into(), work).await {
        Ok(Ok(answering)) => {
            let taken = streams.send.stopped();
            streams.ended();
            if answering.is_some() {
                // After the deadline, or without a connection, nobody waits for the answer.
                let _ = tokio::time::timeout_at(deadline.into(), taken).await;
            }
        }
        Ok(Err(reason)) => tracing::debug!(peer = %peer.id, reason, "a call came to no answer"),
        Err(_) => {
            streams.on_drop = ResetCode::Deadline;
            tracing::debug!(peer = %peer.id, "a call's deadline has passed");
        }
    }
}

/// Reads a call, has it handled and writes the answer. What it gives counts it until the answer has been taken.
async fn read_and_handle(
    shared: &Shared,
    peer: &Peer,
    class: Class,
    streams: &mut Streams,
    head: &RequestHead,
    deadline: Instant,
) -> Result<Option<Counted>, String> {
    let mut held = Held::of(peer.memory(Kind::of(class)));
    let (handler, call, _under_way) = match read_call(shared, peer, class, streams, head, deadline, &mut held).await {
        Ok(read) => read,
        Err(NotRead::GivenUp) => return Err("its caller gave it up".to_owned()),
        Err(NotRead::Refused(refusal)) => {
            MeshCounters::add(&shared.counters.refused_calls);
            tracing::debug!(peer = %peer.id, %refusal, "a call was refused");
            // The caller may still be writing; an error says that it has finished.
            let _ = streams.recv.stop(ResetCode::Enough.into());
            return write_answer(streams, Answer::of(Reply::Refused(refusal))).await.map(|()| None);
        }
    };
    let answering = (class != Class::Control).then(|| shared.answering.begin());
    let gone = streams.send.stopped();
    let answer = tokio::select! {
        answer = handler.handle(&peer.id, call) => answer,
        // The caller has dropped the call, or is gone itself: the handler's future is dropped.
        _ = gone => return Err("its caller dropped it".to_owned()),
    };
    // Whoever goes refuses ever new calls, and waits for no end of that.
    let answering = answering.filter(|_| !matches!(answer.reply, Reply::Refused(_)));
    write_answer(streams, answer).await.map(|()| answering)
}

/// Why a request was not read to its end.
enum NotRead {
    /// Its caller reset the stream, or is gone.
    GivenUp,
    /// It is not to be served.
    Refused(Refusal),
}

impl From<ReadFailure> for NotRead {
    fn from(failure: ReadFailure) -> Self {
        match failure {
            ReadFailure::Ended(_) => Self::GivenUp,
            ReadFailure::NoRoom => Self::Refused(Refusal::Busy),
            ReadFailure::TooLarge { .. } => Self::Refused(Refusal::Malformed(failure.to_string())),
        }
    }
}

type Read = (Arc<dyn Handler>, Call, OwnedSemaphorePermit);

/// Reads the rest of a request, up to its end.
async fn read_call(
    shared: &Shared,
    peer: &Peer,
    class: Class,
    streams: &mut Streams,
    head: &RequestHead,
    deadline: Instant,
    held: &mut Held,
) -> Result<Read, NotRead> {
    let Some(handler) = shared.handler.get().cloned() else {
        return Err(NotRead::Refused(Refusal::Other("the member is still starting".to_owned())));
    };
    let _ = streams.send.set_priority(priority(class));
    let Ok(under_way) = peer.served.of(class).clone().try_acquire_owned() else {
        return Err(NotRead::Refused(Refusal::Busy));
    };
    let header_len = head.header_len as usize;
    let header = read_exactly(&mut streams.recv, header_len, |size| held.grow(size)).await?;
    let request = match Request::decode_payload(head.verb, &header) {
        Ok(Some(request)) => request,
        Ok(None) => return Err(NotRead::Refused(Refusal::UnknownVerb(head.verb))),
        Err(e) => return Err(NotRead::Refused(Refusal::Malformed(e.to_string()))),
    };
    let limit = if class == Class::Control { CONTROL_BODY_MAX_BYTES } else { CALL_BODY_MAX_BYTES };
    let body = read_body(&mut streams.recv, limit, |size| held.grow(header_len + size)).await?;
    Ok((handler, Call { request, body, deadline, trace: TraceId(head.trace) }, under_way))
}
