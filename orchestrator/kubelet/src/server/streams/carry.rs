//! Carries bytes between a client and the runtime until one of them has had enough.

use super::{
    session::{Reaction, Session, Wanted},
    spdy::{Codec, Send},
};
use bytes::{Bytes, BytesMut};
use futures::{SinkExt as _, Stream, StreamExt as _, stream::SplitSink};
use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    sync::mpsc,
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        Error, Message,
        protocol::{CloseFrame, Role, WebSocketConfig, frame::coding::CloseCode},
    },
};
use tokio_util::codec::{FramedRead, FramedWrite};

/// Largest message that a client may send; kubectl sends 32 KiB.
const MOST: usize = 16 << 20;
/// Bytes that are read from the runtime at once.
const CHUNK: usize = 32 << 10;
/// How long a client has to say goodbye. Until then its connection stays, so that nothing on the way to it is lost.
const LINGER: Duration = Duration::from_secs(10);

/// The server's side of a WebSocket whose handshake is done.
pub(super) async fn websocket<S>(stream: S) -> WebSocketStream<S>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let config = WebSocketConfig::default()
        .max_message_size(Some(MOST))
        .max_frame_size(Some(MOST));
    WebSocketStream::from_raw_socket(stream, Role::Server, Some(config)).await
}

fn goodbye() -> Message {
    Message::Close(Some(CloseFrame {
        code: CloseCode::Normal,
        reason: "".into(),
    }))
}

/// Reads what the client still says, until it has closed.
async fn drain(mut client: impl Stream<Item = Result<Message, Error>> + Unpin) {
    let _ = tokio::time::timeout(LINGER, async { while let Some(Ok(_)) = client.next().await {} }).await;
}

/// SPDY's bytes: in binary messages on the client's side, as they are on the runtime's.
pub(super) async fn unwrap<C, R>(client: WebSocketStream<C>, runtime: R)
where
    C: AsyncRead + AsyncWrite + Unpin,
    R: AsyncRead + AsyncWrite,
{
    let (mut sink, mut messages) = client.split();
    let (mut read, mut write) = tokio::io::split(runtime);
    let up = async {
        while let Some(Ok(message)) = messages.next().await {
            let carried = match message {
                Message::Binary(bytes) => write.write_all(&bytes).await,
                Message::Close(_) => return,
                _ => Ok(()),
            };
            if carried.is_err() {
                return;
            }
        }
    };
    let down = async {
        let mut buffer = BytesMut::new();
        loop {
            buffer.reserve(CHUNK);
            match read.read_buf(&mut buffer).await {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
            if sink.send(Message::Binary(buffer.split().freeze())).await.is_err() {
                return;
            }
        }
    };
    let runtime_ended = tokio::select! {
        () = up => false,
        () = down => true,
    };
    if runtime_ended && sink.send(goodbye()).await.is_ok() {
        drain(messages).await;
    }
}

/// A command's streams: channels of a WebSocket on the client's side, SPDY streams on the runtime's.
pub(super) async fn translate<C, R>(client: WebSocketStream<C>, runtime: R, wanted: Wanted)
where
    C: AsyncRead + AsyncWrite + Unpin,
    R: AsyncRead + AsyncWrite,
{
    let (mut sink, mut messages) = client.split();
    let (read, write) = tokio::io::split(runtime);
    let (session, frames) = Session::start(wanted);
    let session = Mutex::new(session);
    let (pongs, pings) = mpsc::channel(8);
    let up = up(
        &mut messages,
        FramedWrite::new(write, Codec::default()),
        frames,
        &session,
        pings,
    );
    let down = down(&mut sink, FramedRead::new(read, Codec::default()), &session, &pongs);
    let runtime_ended = tokio::select! {
        () = up => false,
        () = down => true,
    };
    if runtime_ended && sink.send(goodbye()).await.is_ok() {
        drain(messages).await;
    }
}

fn with<T>(session: &Mutex<Session>, act: impl FnOnce(&mut Session) -> T) -> T {
    act(&mut session.lock().unwrap_or_else(PoisonError::into_inner))
}

/// From client to runtime; returns when the client is gone.
async fn up<W: AsyncWrite + Unpin>(
    messages: &mut (impl Stream<Item = Result<Message, Error>> + Unpin),
    mut runtime: FramedWrite<W, Codec>,
    opening: Vec<Send>,
    session: &Mutex<Session>,
    mut pings: mpsc::Receiver<Send>,
) {
    // A command may end before it has read its stdin: then this side breaks, while its output is still on the way.
    let mut broken = false;
    for frame in opening {
        broken |= runtime.feed(frame).await.is_err();
    }
    broken |= runtime.flush().await.is_err();
    loop {
        let frame = tokio::select! {
            Some(pong) = pings.recv() => Some(pong),
            message = messages.next() => match message {
                Some(Ok(Message::Binary(bytes))) => with(session, |it| it.client_says(&bytes)),
                // Python's client writes what is text as text.
                Some(Ok(Message::Text(text))) => with(session, |it| it.client_says(&text.into())),
                Some(Ok(Message::Close(_)) | Err(_)) | None => return,
                Some(Ok(_)) => None,
            },
        };
        if let Some(frame) = frame.filter(|_| !broken) {
            broken = runtime.send(frame).await.is_err();
        }
    }
}

/// From runtime to client; returns when the runtime has said all, or the client is gone.
async fn down<C, R>(
    client: &mut SplitSink<WebSocketStream<C>, Message>,
    mut runtime: FramedRead<R, Codec>,
    session: &Mutex<Session>,
    pongs: &mpsc::Sender<Send>,
) where
    C: AsyncRead + AsyncWrite + Unpin,
    R: AsyncRead + Unpin,
{
    let cause = loop {
        let frame = match runtime.next().await {
            Some(Ok(frame)) => frame,
            Some(Err(error)) => break error.to_string(),
            None => break "it closed the connection".to_owned(),
        };
        match with(session, |it| it.runtime_says(frame)) {
            Reaction::ToClient(bytes) => {
                if send(client, bytes).await.is_err() {
                    return;
                }
            }
            // If so many are waiting, the runtime does not read: it will see that by itself.
            Reaction::ToRuntime(frame) => drop(pongs.try_send(frame)),
            Reaction::Nothing => {}
        }
        if with(session, |it| it.is_over()) {
            break "it closed all streams".to_owned();
        }
    };
    if let Some(status) = with(session, |it| it.end(&cause)) {
        // If the client is gone, nobody needs to know.
        let _ = send(client, status).await;
    }
}

async fn send<C>(client: &mut SplitSink<WebSocketStream<C>, Message>, bytes: Bytes) -> Result<(), Error>
where
    C: AsyncRead + AsyncWrite + Unpin,
{
    client.send(Message::Binary(bytes)).await
}
