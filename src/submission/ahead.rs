//! A TCP stream that is read in large pieces: TLS asks for four KiB at a time, and each question
//! would be a system call of its own.
//!
//! Easy to get wrong: thousands of sessions are idle, so nothing is kept between reads but octets
//! that are still to be taken; the room they are read into belongs to the thread.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// Octets of one read: a little over one TLS record and a short one.
const PIECE_OCTETS: usize = 32 * 1024;

thread_local! {
    static PIECE: RefCell<Box<[u8]>> = RefCell::new(vec![0; PIECE_OCTETS].into_boxed_slice());
}

/// The stream, and what was read ahead of its reader.
pub(super) struct ReadAhead {
    stream: TcpStream,
    ahead: Vec<u8>,
    taken: usize,
}

impl ReadAhead {
    pub(super) fn new(stream: TcpStream) -> Self {
        Self { stream, ahead: Vec::new(), taken: 0 }
    }

    /// Gives what is held; forgets it once everything was given.
    fn give(&mut self, buffer: &mut ReadBuf<'_>) {
        let held = self.ahead.get(self.taken..).unwrap_or_default();
        let count = held.len().min(buffer.remaining());
        buffer.put_slice(held.get(..count).unwrap_or_default());
        self.taken = self.taken.saturating_add(count);
        if self.taken >= self.ahead.len() {
            (self.ahead, self.taken) = (Vec::new(), 0);
        }
    }
}

impl AsyncRead for ReadAhead {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.ahead.is_empty() {
            this.give(buffer);
            return Poll::Ready(Ok(()));
        }
        if buffer.remaining() >= PIECE_OCTETS {
            return Pin::new(&mut this.stream).poll_read(context, buffer);
        }
        PIECE.with_borrow_mut(|piece| {
            let mut whole = ReadBuf::new(piece);
            ready!(Pin::new(&mut this.stream).poll_read(context, &mut whole))?;
            let (now, later) = whole.filled().split_at(whole.filled().len().min(buffer.remaining()));
            buffer.put_slice(now);
            this.ahead.extend_from_slice(later);
            Poll::Ready(Ok(()))
        })
    }
}

impl AsyncWrite for ReadAhead {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, octets: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(context, octets)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    async fn pair() -> (ReadAhead, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (ReadAhead::new(listener.accept().await.unwrap().0), client)
    }

    #[tokio::test]
    async fn everything_arrives_in_order_whatever_room_the_reader_has() {
        for room in [1, 5, 4096, 40_000, 200_000] {
            let (mut reader, mut writer) = pair().await;
            let text: Vec<u8> = (0..100_000_u32).map(|number| (number % 251) as u8).collect();
            let sent = text.clone();
            let writing = tokio::spawn(async move {
                for part in sent.chunks(7_001) {
                    writer.write_all(part).await.unwrap();
                }
            });
            let (mut found, mut buffer) = (Vec::new(), vec![0; room]);
            loop {
                match reader.read(&mut buffer).await.unwrap() {
                    0 => break,
                    count => found.extend_from_slice(&buffer[..count]),
                }
            }
            writing.await.unwrap();
            assert!(found == text, "room for {room}");
            assert_eq!(reader.ahead.capacity(), 0);
        }
    }

    #[tokio::test]
    async fn a_silent_peer_costs_no_buffer() {
        let (mut reader, mut writer) = pair().await;
        writer.write_all(b"NOOP\r\n").await.unwrap();
        let mut buffer = [0; 4096];
        assert_eq!(reader.read(&mut buffer).await.unwrap(), 6);
        assert_eq!(reader.ahead.capacity(), 0);
        let waiting = tokio::time::timeout(std::time::Duration::from_millis(20), reader.read(&mut buffer));
        assert!(waiting.await.is_err());
        assert_eq!(reader.ahead.capacity(), 0);
    }
}
