//! `schema FILE.proto FOLDER`: writes the Rust form of the messages into `FOLDER/schema.rs`.

use std::path::Path;
use std::{env, error, fs};

const NOTE: &str = "// Made of client.proto by tools/schema/run. Change that file, and run it again.\n";

fn main() -> Result<(), Box<dyn error::Error>> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [proto, folder] = &arguments[..] else {
        return Err("usage: schema FILE.proto FOLDER".into());
    };
    let (proto, folder) = (Path::new(proto), Path::new(folder));
    let files = protox::compile([proto], [proto.parent().unwrap_or(Path::new("."))])?;
    // Sorted maps: one value has one encoding.
    prost_build::Config::new().btree_map(["."]).out_dir(folder).compile_fds(files)?;
    let made = folder.join("centrifugal.centrifuge.protocol.rs");
    fs::write(folder.join("schema.rs"), NOTE.to_owned() + &fs::read_to_string(&made)?)?;
    Ok(fs::remove_file(made)?)
}
