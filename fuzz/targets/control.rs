//! What is said over the control and serving sockets, as it comes off the wire.
#![no_main]

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use luthier_core::runs::serving::{ServeReply, ServeRequest};
use luthier_core::runs::{LineReader, Reply, Request, RunError};
use serde_json::{from_slice, to_vec};

/// More would fill the socket before anybody reads.
const LONGEST: usize = 64 << 10;

fuzz_target!(|input: &[u8]| {
    let input = &input[..input.len().min(LONGEST)];
    if let Ok(request) = from_slice::<Request>(input) {
        let again = to_vec(&request).expect("a request has a JSON form");
        assert_eq!(from_slice::<Request>(&again).expect("what is written is read"), request);
    }
    let _ = from_slice::<Reply>(input);
    let _ = from_slice::<ServeRequest>(input);
    let _ = from_slice::<ServeReply>(input);

    let (mut here, there) = UnixStream::pair().expect("sockets can be made");
    here.write_all(input).expect("the socket takes it");
    drop(here);
    let mut reader = LineReader::new(there);
    loop {
        match reader.receive::<Request>(Some(Duration::from_secs(1))) {
            Ok(Some(_)) | Err(RunError::Answer(_)) => {}
            Ok(None) => panic!("the connection has ended, which must be told"),
            Err(_) => break,
        }
    }
});
