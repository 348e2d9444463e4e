//! The bytes of a connection, with TLS or without.

use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};

use rustix::event::{PollFd, PollFlags, Timespec};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

/// The bytes of a connection.
pub enum Stream {
    /// Without TLS.
    Plain(TcpStream),
    /// Over TLS, after the handshake.
    Tls(Box<TlsStream<Socket>>),
}

/// A stream that belongs to no thread.
pub enum Detached {
    /// Without TLS.
    Plain(std::net::TcpStream),
    /// The socket, and the session, which has none meanwhile.
    Tls(std::net::TcpStream, Box<TlsStream<Socket>>),
}

/// The socket below a TLS session, which can be taken out and replaced: a socket belongs to the thread that serves it.
pub struct Socket(Option<TcpStream>);

impl Socket {
    /// A socket for a new session.
    pub fn new(stream: TcpStream) -> Self {
        Socket(Some(stream))
    }

    /// The socket, once no session needs it.
    pub fn into_inner(self) -> Option<TcpStream> {
        self.0
    }

    fn stream(self: Pin<&mut Self>) -> io::Result<Pin<&mut TcpStream>> {
        self.get_mut().0.as_mut().map(Pin::new).ok_or_else(|| io::ErrorKind::NotConnected.into())
    }
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.stream()?.poll_read(context, buffer)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.stream()?.poll_write(context, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.stream()?.poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream()?.poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream()?.poll_shutdown(context)
    }
}

impl Stream {
    /// The socket; `None` never happens.
    fn tcp(&self) -> Option<&TcpStream> {
        match self {
            Stream::Plain(stream) => Some(stream),
            Stream::Tls(session) => session.get_ref().0.0.as_ref(),
        }
    }

    /// Whether the session has decrypted bytes that are not read yet. The socket may have nothing to read then.
    fn has_decrypted(&self) -> bool {
        match self {
            Stream::Plain(_) => false,
            Stream::Tls(session) => !session.get_ref().1.wants_read(),
        }
    }

    /// Ready if the socket has something to read, or the session does.
    pub fn poll_read_ready(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.tcp() {
            Some(stream) if !self.has_decrypted() => stream.poll_read_ready(context),
            _ => Poll::Ready(Ok(())),
        }
    }

    /// Ready if the socket has room.
    pub fn poll_write_ready(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.tcp().map_or(Poll::Ready(Ok(())), |stream| stream.poll_write_ready(context))
    }

    /// Whether the other side sends no more, as far as the runtime knew at its last poll.
    pub fn is_read_closed(&self, context: &mut Context<'_>) -> bool {
        let Some(stream) = self.tcp() else { return true };
        let ready = pin!(stream.ready(Interest::READABLE));
        matches!(ready.poll(context), Poll::Ready(Ok(ready)) if ready.is_read_closed())
    }

    /// Whether nothing waits to be read now.
    pub fn has_nothing_to_read(&self) -> bool {
        !self.has_decrypted() && self.tcp().is_none_or(Stream::is_quiet)
    }

    /// Whether a socket has nothing to read now.
    pub fn is_quiet(socket: &TcpStream) -> bool {
        polled(socket, PollFlags::IN).is_empty()
    }

    /// Removes the stream from this thread.
    pub fn detach(self) -> io::Result<Detached> {
        match self {
            Stream::Plain(stream) => Ok(Detached::Plain(stream.into_std()?)),
            Stream::Tls(mut session) => {
                let stream = session.get_mut().0.0.take().ok_or(io::ErrorKind::NotConnected)?;
                Ok(Detached::Tls(stream.into_std()?, session))
            }
        }
    }
}

impl Detached {
    /// Makes this thread serve the stream.
    pub fn attach(self) -> io::Result<Stream> {
        match self {
            Detached::Plain(stream) => Ok(Stream::Plain(TcpStream::from_std(stream)?)),
            Detached::Tls(stream, mut session) => {
                session.get_mut().0.0 = Some(TcpStream::from_std(stream)?);
                Ok(Stream::Tls(session))
            }
        }
    }

    /// The address of the other side.
    pub fn peer_addr(&self) -> Option<std::net::SocketAddr> {
        let (Detached::Plain(stream) | Detached::Tls(stream, _)) = self;
        stream.peer_addr().ok()
    }
}

/// Which of `flags`, and which errors, are set now; all flags if the system call fails.
fn polled(stream: &TcpStream, flags: PollFlags) -> PollFlags {
    let mut poll = [PollFd::new(stream, flags)];
    match rustix::event::poll(&mut poll, Some(&Timespec::default())) {
        Ok(_) => poll[0].revents(),
        Err(_) => flags,
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_read(context, buffer),
            Stream::Tls(session) => {
                let length = buffer.filled().len();
                match ready!(Pin::new(session).poll_read(context, buffer)) {
                    // A client that ends the connection without saying so in TLS, as many do. HTTP has its own lengths,
                    // so nothing can be cut off unnoticed.
                    Err(error) if error.kind() == io::ErrorKind::UnexpectedEof && buffer.filled().len() == length => {
                        Poll::Ready(Ok(()))
                    }
                    read => Poll::Ready(read),
                }
            }
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_write(context, bytes),
            Stream::Tls(session) => Pin::new(session).poll_write(context, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_flush(context),
            Stream::Tls(session) => Pin::new(session).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_shutdown(context),
            Stream::Tls(session) => Pin::new(session).poll_shutdown(context),
        }
    }
}
