//! `schema FOLDER FILE.proto INTO`: writes the Rust form of the messages of a file in `FOLDER` into
//! `INTO/schema.rs`. Messages of `client.proto` that another file uses are those of roost's own module.

use std::path::Path;
use std::{env, error, fs};

const CLIENT: &str = "client.proto";
const CLIENT_PACKAGE: &str = ".centrifugal.centrifuge.protocol";

fn main() -> Result<(), Box<dyn error::Error>> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [folder, file, into] = &arguments[..] else {
        return Err("usage: schema FOLDER FILE.proto INTO".into());
    };
    let into = Path::new(into);
    let client = Path::new("src/proto/client");
    let files = protox::compile([file], [Path::new(folder), client])?;
    let mut config = prost_build::Config::new();
    if file != CLIENT {
        config.extern_path(CLIENT_PACKAGE, "crate::proto::client::schema");
    }
    // Sorted maps: one value has one encoding.
    config.btree_map(["."]).out_dir(into).compile_fds(files)?;
    let made = fs::read_dir(into)?.next().ok_or("nothing is made")??.path();
    let note =
        format!("// Made of {file} by tools/schema/run. Change that file, and run it again.\n");
    let code = fs::read_to_string(&made)?;
    fs::remove_file(made)?;
    Ok(fs::write(into.join("schema.rs"), note + &code)?)
}
