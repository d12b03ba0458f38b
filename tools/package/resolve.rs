//! Prints the addresses of a name, looked up as the node does it. `tools/package/run image` links it
//! statically, and runs it where no file but those of the resolver is.

use std::net::ToSocketAddrs;

fn main() {
    let name = std::env::args().nth(1).expect("a name");
    match (name.as_str(), 80).to_socket_addrs() {
        Ok(addresses) => addresses.for_each(|address| println!("{}", address.ip())),
        Err(fault) => {
            println!("{fault}");
            std::process::exit(1);
        }
    }
}
