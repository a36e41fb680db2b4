//! A blocking HTTP/1.1 client over TLS that trusts any certificate: what a program would use that sends or asks by
//! the API.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};

use rustls::{ClientConnection, StreamOwned};

use super::load::connect;

/// One connection, used again for each request.
pub struct Https {
    stream: BufReader<StreamOwned<ClientConnection, TcpStream>>,
}

/// What came back.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// The body as JSON; null if it is none.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    /// All of it as text: what somebody on the way would see.
    pub fn text(&self) -> String {
        let headers: Vec<_> = self.headers.iter().map(|(name, value)| format!("{name}: {value}")).collect();
        format!("{}\n{}\n\n{}", self.status, headers.join("\n"), String::from_utf8_lossy(&self.body))
    }
}

impl Https {
    pub fn open(door: SocketAddr) -> io::Result<Self> {
        Ok(Self { stream: BufReader::new(connect(door)?) })
    }

    /// Makes one request and reads its answer.
    pub fn ask(&mut self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> io::Result<Answer> {
        let mut head = format!("{method} {path} HTTP/1.1\r\nHost: mx.test\r\nContent-Length: {}\r\n", body.len());
        headers.iter().for_each(|(name, value)| head.push_str(&format!("{name}: {value}\r\n")));
        let stream = self.stream.get_mut();
        stream.write_all(&[head.as_bytes(), b"\r\n", body].concat())?;
        stream.flush()?;
        self.answer()
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        if self.stream.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(line.trim_end().to_owned())
    }

    fn answer(&mut self) -> io::Result<Answer> {
        let first = self.line()?;
        let status = first.split(' ').nth(1).and_then(|code| code.parse().ok());
        let status = status.ok_or_else(|| io::Error::other(format!("no status in {first:?}")))?;
        let mut headers = Vec::new();
        loop {
            let line = self.line()?;
            let Some((name, value)) = line.split_once(':') else { break };
            headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
        let mut answer = Answer { status, headers, body: Vec::new() };
        let length = answer.header("content-length").map(str::parse::<usize>);
        match length {
            Some(length) => {
                answer.body = vec![0; length.map_err(io::Error::other)?];
                self.stream.read_exact(&mut answer.body)?;
            }
            None if answer.header("transfer-encoding").is_some() => answer.body = self.chunks()?,
            None => {}
        }
        Ok(answer)
    }

    fn chunks(&mut self) -> io::Result<Vec<u8>> {
        let mut body = Vec::new();
        loop {
            let length = usize::from_str_radix(self.line()?.trim(), 16).map_err(io::Error::other)?;
            let mut chunk = vec![0; length + 2];
            self.stream.read_exact(&mut chunk)?;
            if length == 0 {
                return Ok(body);
            }
            body.extend_from_slice(&chunk[..length]);
        }
    }
}
