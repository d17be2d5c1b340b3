//! One call to a peer: a stream of its own, the request, the answer.
//!
//! Rule: an error says `NotSent` only where the peer's handler can't have run: it runs only after it has read the whole
//! request up to its end, and a request that is given up is reset, never finished. Must not know: what calls are for.

use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use quinn::{Connection, ConnectionError, ReadError, RecvStream, SendStream, WriteError};
use tokio::time::timeout_at;

use super::classes::Kind;
use super::endpoint::ResetCode;
use super::memory::{ANSWERS_TOO_LARGE, Held};
use super::peers::{LinkState, Peer, Shared};
use super::{Answer, Call, CallError};
use crate::types::TraceId;
use crate::types::limits::{CALL_BODY_MAX_BYTES, CALL_HEADER_MAX_BYTES};
use crate::wire::codec;
use crate::wire::frame::{ANSWER_HEAD_BYTES, AnswerHead, PROTOCOL_VERSION, RequestHead};
use crate::wire::gossip::Unreached;
use crate::wire::verbs::{Class, Reply, Request};

/// How long a call waits for a data connection that is being made.
const BEING_MADE: Duration = Duration::from_millis(500);

/// Largest piece that is taken from a stream at once.
const CHUNK_BYTES: usize = 1 << 20;

/// Higher goes first where streams compete for a connection.
pub(super) fn priority(class: Class) -> i32 {
    match class {
        Class::Control => 3,
        Class::Query => 2,
        Class::Replicate => 1,
        Class::Bulk => 0,
    }
}

/// Both halves of a call's stream. Unless it was ended properly, both are reset when it is dropped: a stream that is
/// merely dropped would count as finished.
pub(super) struct Streams {
    pub(super) send: SendStream,
    pub(super) recv: RecvStream,
    /// The code for the peer.
    pub(super) on_drop: ResetCode,
    ended: bool,
}

impl Streams {
    pub(super) fn new(send: SendStream, recv: RecvStream) -> Self {
        Self { send, recv, on_drop: ResetCode::Dropped, ended: false }
    }

    /// Both halves have come to their ends.
    pub(super) fn ended(mut self) {
        self.ended = true;
    }
}

impl Drop for Streams {
    fn drop(&mut self) {
        if !self.ended {
            // An error says that this half is closed already.
            let _ = self.send.reset(self.on_drop.into());
            let _ = self.recv.stop(self.on_drop.into());
        }
    }
}

/// A stream in one direction, reset unless all was written.
pub(super) struct UniStream {
    send: SendStream,
    ended: bool,
}

impl UniStream {
    pub(super) async fn open(connection: &Connection) -> Result<Self, String> {
        let send = connection.open_uni().await.map_err(|e| connection_reason(&e))?;
        Ok(Self { send, ended: false })
    }

    pub(super) async fn write(&mut self, message: Bytes) -> Result<(), String> {
        self.send.write_chunk(message).await.map_err(|e| e.to_string())?;
        self.ended = true;
        self.send.finish().map_err(|e| e.to_string())
    }
}

impl Drop for UniStream {
    fn drop(&mut self) {
        if !self.ended {
            let _ = self.send.reset(ResetCode::Dropped.into());
        }
    }
}

/// What ended a connection, for people.
pub(super) fn connection_reason(error: &ConnectionError) -> String {
    match error {
        ConnectionError::ApplicationClosed(close) => {
            format!("the peer closed the connection: {}", printable(&close.reason))
        }
        ConnectionError::Reset => "the peer was restarted".to_owned(),
        ConnectionError::TimedOut => "no sign of life".to_owned(),
        ConnectionError::LocallyClosed => "closed here".to_owned(),
        e => e.to_string(),
    }
}

/// A peer's text, fit for a log.
pub(super) fn printable(text: &[u8]) -> String {
    String::from_utf8_lossy(text).chars().filter(|c| !c.is_control()).take(300).collect()
}

/// Why bytes did not come.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReadFailure {
    /// The stream or the connection ended.
    #[error("{0}")]
    Ended(String),
    /// More than may come at all.
    #[error("a body over the limit of {limit} bytes")]
    TooLarge {
        /// In bytes.
        limit: usize,
    },
    /// More than there is memory left for.
    #[error("{ANSWERS_TOO_LARGE}")]
    NoRoom,
}

/// Reads exactly `len` bytes; memory grows with what arrives, not with what was promised, and `grow` is asked as in
/// [`read_body`].
pub(super) async fn read_exactly(
    recv: &mut RecvStream,
    len: usize,
    mut grow: impl FnMut(usize) -> bool,
) -> Result<Bytes, ReadFailure> {
    let mut bytes = BytesMut::new();
    while bytes.len() < len {
        match recv.read_chunk((len - bytes.len()).min(CHUNK_BYTES), true).await {
            Ok(Some(chunk)) if !grow(bytes.len() + chunk.bytes.len()) => return Err(ReadFailure::NoRoom),
            Ok(Some(chunk)) => bytes.extend_from_slice(&chunk.bytes),
            Ok(None) => return Err(ReadFailure::Ended("the stream is cut short".to_owned())),
            Err(e) => return Err(ReadFailure::Ended(read_reason(&e))),
        }
    }
    Ok(bytes.freeze())
}

/// Reads up to the stream's end; `grow` is asked before each piece is kept and is told how much there will be then.
pub(super) async fn read_body(
    recv: &mut RecvStream,
    limit: usize,
    mut grow: impl FnMut(usize) -> bool,
) -> Result<Bytes, ReadFailure> {
    let mut first = Bytes::new();
    let mut bytes = BytesMut::new();
    loop {
        let chunk = match recv.read_chunk(CHUNK_BYTES, true).await {
            Ok(Some(chunk)) => chunk.bytes,
            Ok(None) if bytes.is_empty() => return Ok(first),
            Ok(None) => return Ok(bytes.freeze()),
            Err(e) => return Err(ReadFailure::Ended(read_reason(&e))),
        };
        let so_far = if bytes.is_empty() { first.len() } else { bytes.len() };
        if so_far + chunk.len() > limit {
            return Err(ReadFailure::TooLarge { limit });
        }
        if !grow(so_far + chunk.len()) {
            return Err(ReadFailure::NoRoom);
        }
        if so_far == 0 {
            // A small body is one piece and is not copied.
            first = chunk;
            continue;
        }
        if bytes.is_empty() {
            bytes.extend_from_slice(&std::mem::take(&mut first));
        }
        bytes.extend_from_slice(&chunk);
    }
}

pub(super) fn read_reason(error: &ReadError) -> String {
    match error {
        ReadError::Reset(code) if *code == ResetCode::Deadline.into() => "the deadline passed at the peer".to_owned(),
        ReadError::Reset(_) => "the peer gave the stream up".to_owned(),
        ReadError::ConnectionLost(e) => connection_reason(e),
        e => e.to_string(),
    }
}

/// The connection for calls of this kind. While the peer answers on the other one, a data connection that is only being made
/// is waited for: a peer counts as there again as soon as its control connection is.
async fn connection_of(peer: &Peer, kind: Kind, deadline: tokio::time::Instant) -> Result<Connection, String> {
    let found = |state: &LinkState| match state {
        LinkState::Up { connection, .. } => Ok(connection.clone()),
        LinkState::Down(reason) => Err(reason.clone()),
    };
    let mut state = peer.link(kind).subscribe();
    let now = found(&state.borrow());
    let answers = || kind == Kind::Data && found(&peer.link(Kind::Control).borrow()).is_ok();
    let Err(reason) = now else { return now };
    if !answers() {
        return Err(reason);
    }
    let until = deadline.min(tokio::time::Instant::now() + BEING_MADE);
    match timeout_at(until, state.wait_for(|state| found(state).is_ok())).await {
        Ok(Ok(state)) => found(&state),
        _ => Err(reason),
    }
}

/// Calls a peer. Dropping the future resets the stream.
pub(super) async fn call(shared: &Shared, peer: &Peer, call: Call) -> Result<Answer, CallError> {
    let not_sent = |reason: String| CallError::NotSent { member: peer.id.clone(), reason };
    let deadline = tokio::time::Instant::from_std(call.deadline);
    let late = || not_sent("the deadline passed before the call was sent".to_owned());
    if call.deadline <= Instant::now() {
        return Err(late());
    }
    if call.body.len() > CALL_BODY_MAX_BYTES {
        return Err(not_sent(format!(
            "a body of {} bytes is over the limit of {CALL_BODY_MAX_BYTES}",
            call.body.len()
        )));
    }
    let header = call.request.encode_payload().map_err(|e| not_sent(e.to_string()))?;
    let class = call.request.class();

    let gate = peer.calls.of(class).acquire();
    let _under_way = timeout_at(deadline, gate).await.map_err(|_| late())?.map_err(|e| not_sent(e.to_string()))?;
    let connection = connection_of(peer, Kind::of(class), deadline).await.map_err(not_sent)?;
    let (send, recv) = timeout_at(deadline, connection.open_bi())
        .await
        .map_err(|_| late())?
        .map_err(|e| not_sent(connection_reason(&e)))?;
    let mut streams = Streams::new(send, recv);

    match timeout_at(deadline, write_request(shared, &mut streams.send, &call, class, header)).await {
        Err(_) => return Err(late()),
        Ok(Ok(())) => {}
        // The peer reads no further: it has refused already, and says why. The request was never finished, so nothing
        // can have been done, whatever the answer is.
        Ok(Err(WriteError::Stopped(_))) => {
            return match timeout_at(deadline, read_answer(shared, &mut streams.recv)).await {
                Ok(Ok(Answer { reply: Reply::Refused(refusal), .. })) => {
                    Err(CallError::Refused { member: peer.id.clone(), refusal })
                }
                _ => Err(not_sent("the peer stopped reading the request".to_owned())),
            };
        }
        Ok(Err(e)) => return Err(not_sent(e.to_string())),
    }
    let no_answer = |reason: String| CallError::NoAnswer { member: peer.id.clone(), reason };
    let answer = match timeout_at(deadline, read_answer(shared, &mut streams.recv)).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(reason)) => return Err(no_answer(reason)),
        Err(_) => {
            streams.on_drop = ResetCode::Deadline;
            return Err(no_answer("the deadline has passed".to_owned()));
        }
    };
    streams.ended();
    match answer.reply {
        Reply::Refused(refusal) => Err(CallError::Refused { member: peer.id.clone(), refusal }),
        _ => Ok(answer),
    }
}

fn request_head(shared: &Shared, verb: u16, left_ms: u32, trace: TraceId, header_len: usize) -> RequestHead {
    RequestHead {
        version: PROTOCOL_VERSION,
        verb,
        mesh: shared.mesh_id(),
        deadline_ms: left_ms,
        trace: trace.0,
        // Checked against the limit when it was encoded.
        header_len: u32::try_from(header_len).unwrap_or(u32::MAX),
    }
}

async fn write_request(
    shared: &Shared,
    send: &mut SendStream,
    call: &Call,
    class: Class,
    header: Vec<u8>,
) -> Result<(), WriteError> {
    let left = call.deadline.saturating_duration_since(Instant::now()).as_millis();
    let left_ms = u32::try_from(left).unwrap_or(u32::MAX);
    let head = request_head(shared, call.request.verb(), left_ms, call.trace, header.len());
    // An error says that the stream is closed; writing says so too.
    let _ = send.set_priority(priority(class));
    let mut front = BytesMut::with_capacity(head.encode().len() + header.len());
    front.extend_from_slice(&head.encode());
    front.extend_from_slice(&header);
    send.write_all_chunks(&mut [front.freeze(), call.body.clone()]).await?;
    send.finish().map_err(|_| WriteError::ClosedStream)
}

async fn read_answer(shared: &Shared, recv: &mut RecvStream) -> Result<Answer, String> {
    let mut held = Held::of(&shared.answer_memory);
    let failed = |e: ReadFailure| e.to_string();
    let mut head = [0; ANSWER_HEAD_BYTES];
    head.copy_from_slice(&read_exactly(recv, ANSWER_HEAD_BYTES, |_| true).await.map_err(failed)?);
    let head = AnswerHead::decode(&head).map_err(|e| e.to_string())?;
    let header = read_exactly(recv, head.header_len as usize, |_| true).await.map_err(failed)?;
    let reply = codec::decode::<Reply, CALL_HEADER_MAX_BYTES>("reply", &header).map_err(|e| e.to_string())?;
    let body = read_body(recv, CALL_BODY_MAX_BYTES, |size| held.grow_answer(size)).await.map_err(failed)?;
    Ok(Answer { reply, body: held.keep(body) })
}

/// One probe; answered by the peer's mesh thread, which says whom it does not reach.
pub(super) async fn probe(shared: &Shared, connection: &Connection) -> Result<Unreached, String> {
    let (send, recv) = connection.open_bi().await.map_err(|e| connection_reason(&e))?;
    let mut streams = Streams::new(send, recv);
    let _ = streams.send.set_priority(priority(Class::Control) + 1);
    let head = request_head(shared, Request::Probe.verb(), 3_000, TraceId::default(), 0);
    streams.send.write_all(&head.encode()).await.map_err(|e| e.to_string())?;
    streams.send.finish().map_err(|e| e.to_string())?;
    let answer = read_answer(shared, &mut streams.recv).await?;
    streams.ended();
    match answer.reply {
        Reply::Done => Unreached::from_bytes(&answer.body).ok_or_else(|| "the answer to a probe makes no sense".into()),
        other => Err(format!("a probe was answered with {other:?}")),
    }
}
