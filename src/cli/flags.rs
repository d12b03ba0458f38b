//! The command line of `roost`: commands and their flags.
//!
//! Flags of a node are generated from the option table, so every option has a flag with its text and default.
//! They are understood before a command, too, as in `roost --config F serve`; what stands behind it wins.

use std::path::PathBuf;
use std::sync::LazyLock;

use clap::builder::PossibleValuesParser;
use clap::{Arg, ArgAction, ArgMatches, Args, Command as ClapCommand, FromArgMatches, Parser};

use super::centrifugo::Theirs;
use super::documents::Program;
use super::health::HealthArgs;
use super::init::InitArgs;
use super::migrate::MigrateArgs;
use super::plan::PlanArgs;
use super::reload::ReloadArgs;
use super::status::StatusArgs;
use super::top::TopArgs;
use super::upgrade::UpgradeArgs;
use crate::config::PrintFormat;
use crate::config::table::{OPTIONS, Opt};
use crate::config::value::Kind;

/// Pushes messages to browsers, phones and devices: a million connections in one process.
#[derive(Debug, Parser)]
#[command(
    name = "roost",
    version,
    after_help = "Without a command, a configuration file and keys: a development node, the same as \
                  `roost serve --dev`. It listens on 127.0.0.1 only, and every local client may connect, \
                  subscribe and publish. With a file (-c, ROOST_CONFIG) or a key (of tokens, the API or \
                  the admin page, by flag or variable): the same as `roost serve`."
)]
pub(super) struct Cli {
    /// Run a development node even with a configuration file or keys.
    #[arg(long)]
    pub dev: bool,
    /// Options of the node.
    #[command(flatten)]
    pub options: OptionArgs,
    /// The command.
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// The commands.
#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Run a node.
    Serve(ServeArgs),
    /// Check whether a running node can serve: exit code 0 or 1.
    Health(Box<HealthArgs>),
    /// Show the figures of a running node, and of those that share its broker.
    Status(Box<StatusArgs>),
    /// Show what the admin page of a running node shows, in the terminal.
    Top(Box<TopArgs>),
    /// Have a running node read its options again, and say whether it did.
    Reload(Box<ReloadArgs>),
    /// Start a new process that takes over all connections of a running node.
    Upgrade(Box<UpgradeArgs>),
    /// Size a system: memory, descriptors, bandwidth, cores.
    Plan(PlanArgs),
    /// Print a token (JWT, HS256), signed with the configured key.
    Token(Box<TokenArgs>),
    /// Check configuration files, or print the defaults.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Compare the limits of this host with what many connections need.
    Tune {
        /// Number of connections.
        #[arg(long, value_name = "N")]
        connections: Option<u64>,
        /// Raise settings that are too low.
        #[arg(long)]
        apply: bool,
        /// Write the sysctl files into this folder.
        #[arg(long, value_name = "DIR")]
        write: Option<PathBuf>,
    },
    /// Print a script that completes a command line in a shell.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
        /// The program whose command line is completed.
        #[arg(value_enum, default_value_t = Program::Roost)]
        program: Program,
    },
    /// Write the manual pages of both programs and of all commands into a folder.
    Man {
        /// The folder; made if it is not there.
        #[arg(value_name = "DIR")]
        folder: PathBuf,
    },
    /// Print the version.
    Version,
    #[command(flatten)]
    Theirs(Theirs),
}

/// Arguments of `roost serve`.
#[derive(Debug, clap::Args)]
pub(super) struct ServeArgs {
    /// A development node: loopback only, open to everybody there. No file is read unless named.
    #[arg(long)]
    pub dev: bool,
    /// Options.
    #[command(flatten)]
    pub options: OptionArgs,
}

/// Arguments of `roost token`.
#[derive(Debug, Default, clap::Args)]
pub(super) struct TokenArgs {
    /// User id; "" is an anonymous user.
    #[arg(short, long, value_name = "U")]
    pub user: String,
    /// Print a subscription token for this channel.
    #[arg(long, value_name = "C")]
    pub channel: Option<String>,
    /// Only for the connection with this client id (with --channel).
    #[arg(long, value_name = "ID", requires = "channel")]
    pub client: Option<String>,
    /// Validity of the token; 0: no end.
    #[arg(long, value_name = "T", default_value = "24h", value_parser = ttl)]
    pub ttl: std::time::Duration,
    /// Expiry of the connection or subscription, Unix seconds, if it differs from the token's; 0: never.
    #[arg(long, value_name = "SECONDS", allow_negative_numbers = true)]
    pub expire_at: Option<i64>,
    /// Information about the user or subscriber that other clients see.
    #[arg(long, value_name = "JSON", value_parser = json)]
    pub info: Option<serde_json::Value>,
    /// Data for the subscriber in the reply to subscribe (with --channel).
    #[arg(long, value_name = "JSON", value_parser = json, requires = "channel")]
    pub data: Option<serde_json::Value>,
    /// Options of the channel to replace, such as {"presence":{"value":true}} (with --channel).
    #[arg(long = "override", value_name = "JSON", value_parser = object, requires = "channel")]
    pub overrides: Option<Object>,
    /// Metadata of the connection that proxy calls contain.
    #[arg(long, value_name = "JSON", value_parser = object, conflicts_with = "channel")]
    pub meta: Option<Object>,
    /// Channels to subscribe the connection to, separated by commas; ignored beside --subs.
    #[arg(long, value_name = "C,C", value_delimiter = ',', conflicts_with = "channel")]
    pub channels: Vec<String>,
    /// The same with options for each, such as {"news":{"info":{}}}.
    #[arg(long, value_name = "JSON", value_parser = object, conflicts_with = "channel")]
    pub subs: Option<Object>,
    /// Audiences, separated by commas; by default the configured one.
    #[arg(long, value_name = "A,A", value_delimiter = ',')]
    pub aud: Vec<String>,
    /// Issuer; by default the configured one.
    #[arg(long, value_name = "I")]
    pub iss: Option<String>,
    /// Id of the token.
    #[arg(long, value_name = "ID")]
    pub jti: Option<String>,
    /// Further claims; they replace those above.
    #[arg(long, value_name = "JSON", value_parser = object)]
    pub claims: Option<Object>,
    /// Configuration file with the key.
    #[arg(short, long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// A JSON object.
pub(super) type Object = serde_json::Map<String, serde_json::Value>;

/// Commands about files.
#[derive(Debug, clap::Subcommand)]
pub(super) enum ConfigCommand {
    /// Write a commented configuration with keys of its own, which works.
    Init(InitArgs),
    /// Explain an option: type, default, variable, flag, reload.
    Explain {
        /// Path, variable, flag, or a name before version 6 of Centrifugo; a section for all of its options.
        name: String,
    },
    /// Translate a configuration of Centrifugo 3 to 5, and list what has no place.
    Migrate(MigrateArgs),
    /// List each unknown, wrong or unsupported option of a file, by line.
    Check(CheckArgs),
    /// Print all options with their defaults and explanations.
    Default {
        /// Output format; only TOML has the explanations.
        #[arg(long, value_name = "FORMAT", default_value = "toml", value_parser = print_format())]
        format: PrintFormat,
    },
}

/// Arguments of `roost config check`.
#[derive(Debug, clap::Args)]
pub(super) struct CheckArgs {
    /// Configuration file (TOML, YAML or JSON).
    pub file: PathBuf,
    /// Fail on unknown options as well.
    #[arg(long)]
    pub strict: bool,
}

/// The file and the options given as flags.
#[derive(Clone, Debug, Default)]
pub(super) struct OptionArgs {
    /// `-c`.
    pub config: Option<PathBuf>,
    /// Path and text of each option given.
    pub set: Vec<(&'static str, String)>,
}

impl OptionArgs {
    /// These, and those in front of the command where it has no others.
    pub(super) fn after(self, mut first: Self) -> Self {
        first.set.extend(self.set);
        Self { config: self.config.or(first.config), set: first.set }
    }

    /// No option, and no file.
    pub(super) fn is_empty(&self) -> bool {
        self.config.is_none() && self.set.is_empty()
    }

    /// The first of them, as it may have been written.
    pub(super) fn first(&self) -> String {
        let flag = |path: &str| FLAGS.iter().find(|flag| flag.option.path == path);
        match self.set.first() {
            _ if self.config.is_some() => "--config".to_owned(),
            Some((path, _)) => {
                flag(path).map_or_else(String::new, |flag| format!("--{}", flag.name))
            }
            None => String::new(),
        }
    }
}

/// The same options for a command that only looks a node up: the help of most of them is left out.
#[derive(Clone, Debug, Default)]
pub(super) struct ShortOptionArgs(pub OptionArgs);

impl Args for ShortOptionArgs {
    fn augment_args(command: ClapCommand) -> ClapCommand {
        let shown = ["config", "http_server.address", "http_server.port"];
        OptionArgs::augment_args(command).mut_args(|argument| {
            let id = argument.get_id().as_str();
            match shown.contains(&id) {
                true => argument.help_heading("The node"),
                // Flags of the command itself have no dot in their names, nor a path of an option.
                false => {
                    let of_node = FLAGS.iter().any(|flag| flag.option.path == id);
                    argument.hide(of_node)
                }
            }
        })
    }

    fn augment_args_for_update(command: ClapCommand) -> ClapCommand {
        Self::augment_args(command)
    }
}

impl FromArgMatches for ShortOptionArgs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        OptionArgs::from_arg_matches(matches).map(Self)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        self.0.update_from_arg_matches(matches)
    }
}

/// A flag of an option. In a static list, since the parser needs names with a static lifetime.
struct Flag {
    option: &'static Opt,
    name: String,
    section: String,
}

static FLAGS: LazyLock<Vec<Flag>> = LazyLock::new(|| {
    let flag = |option: &'static Opt| {
        let section = option.path.split_once('.').map_or("process", |(section, _)| section);
        Some(Flag { option, name: option.flag()?, section: format!("Options: {section}") })
    };
    OPTIONS.iter().filter_map(flag).collect()
});

/// The flag of an option, without its dashes.
pub(super) fn flag_of(option: &str) -> Option<&'static str> {
    let flag = FLAGS.iter().find(|flag| flag.option.path == option);
    flag.map(|flag| flag.name.as_str())
}

impl Args for OptionArgs {
    fn augment_args(command: ClapCommand) -> ClapCommand {
        let config = Arg::new("config")
            .short('c')
            .long("config")
            .value_name("FILE")
            .value_parser(clap::value_parser!(PathBuf))
            .help(
                "Configuration file (TOML, YAML or JSON); by default ROOST_CONFIG, or config.json",
            );
        FLAGS.iter().fold(command.arg(config), |command, flag| command.arg(argument(flag)))
    }

    fn augment_args_for_update(command: ClapCommand) -> ClapCommand {
        Self::augment_args(command)
    }
}

impl FromArgMatches for OptionArgs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut arguments = Self::default();
        arguments.update_from_arg_matches(matches)?;
        Ok(arguments)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        self.config = matches.get_one::<PathBuf>("config").cloned();
        let given = FLAGS.iter().filter_map(|flag| {
            let text = matches.get_one::<String>(flag.option.path)?;
            Some((flag.option.path, text.clone()))
        });
        self.set = given.collect();
        Ok(())
    }
}

fn argument(flag: &'static Flag) -> Arg {
    let option = flag.option;
    let mut help = option.doc.to_owned();
    if !matches!(option.default, "false" | "\"\"" | "[]") {
        help += &format!(" [default: {}]", option.default.trim_matches('"'));
    }
    let argument = Arg::new(option.path)
        .long(flag.name.as_str())
        .help(help)
        .help_heading(flag.section.as_str())
        // Values are judged with those of files and variables, so that all problems come at once.
        .action(ArgAction::Set)
        .allow_hyphen_values(true)
        .hide(!option.is_built());
    let argument = match option.path {
        "http_server.address" => argument.short('a').visible_alias("address"),
        "http_server.port" => argument.short('p').visible_alias("port"),
        "log.level" => argument.visible_alias("log-level").alias("log_level"),
        _ => argument,
    };
    match option.kind {
        Kind::Bool => argument
            .num_args(0..=1)
            .require_equals(true)
            .default_missing_value("true")
            .value_name("BOOL"),
        Kind::Integer(..) => argument.value_name("N"),
        Kind::Duration | Kind::DurationOrOff => argument.value_name("TIME"),
        Kind::List => argument.value_name("LIST"),
        _ => argument.value_name("TEXT"),
    }
}

pub(super) fn print_format() -> impl clap::builder::TypedValueParser<Value = PrintFormat> {
    use clap::builder::TypedValueParser;
    PossibleValuesParser::new(["toml", "yaml", "json"]).map(|name| match name.as_str() {
        "yaml" => PrintFormat::Yaml,
        "json" => PrintFormat::Json,
        _ => PrintFormat::Toml,
    })
}

fn ttl(text: &str) -> Result<std::time::Duration, String> {
    humantime::parse_duration(text)
        .map_err(|_| "expected a duration such as 10m or 24h, or 0".into())
}

fn json(text: &str) -> Result<serde_json::Value, String> {
    serde_json::from_str(text).map_err(|fault| format!("expected JSON: {fault}"))
}

fn object(text: &str) -> Result<Object, String> {
    match json(text)? {
        serde_json::Value::Object(object) => Ok(object),
        _ => Err("expected a JSON object".into()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split(' '))
    }

    #[test]
    fn definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn options_of_a_node() {
        let cli = parse(
            "roost serve -c f.toml -p 9000 --client.insecure --echo=false --shards auto \
             --drain-rate 5 --memory-limit 12GiB --client.ping_interval -1 --sse.enabled --io epoll",
        )
        .unwrap();
        let Some(Command::Serve(serve)) = cli.command else { panic!("{cli:?}") };
        assert_eq!(serve.options.config, Some("f.toml".into()));
        let mut set = serve.options.set;
        set.sort();
        let set: Vec<_> = set.iter().map(|(path, text)| format!("{path}={text}")).collect();
        assert_eq!(
            set,
            [
                "client.insecure=true",
                "client.ping_interval=-1",
                "http_server.port=9000",
                "roost.drain_rate=5",
                "roost.echo=false",
                "roost.io=epoll",
                "roost.memory_limit=12GiB",
                "roost.shards=auto",
                "sse.enabled=true",
            ]
        );
        assert!(!serve.dev);
        assert!(parse("roost serve --roost.shards 4").is_err());
        assert!(parse("roost serve --client.insecure no").is_err());
    }

    #[test]
    fn without_a_command() {
        let cli = parse("roost").unwrap();
        assert!(cli.command.is_none() && cli.options.set.is_empty() && !cli.dev);
        assert!(parse("roost --dev -c f.toml").unwrap().dev);
        let cli = parse("roost --http_server.port 1").unwrap();
        assert_eq!(cli.options.set, [("http_server.port", "1".to_owned())]);
        assert!(parse("roost serve --dev").is_ok());
        assert!(parse("roost serv").is_err());
    }

    #[test]
    fn other_commands() {
        let tokens = |line: &str| match parse(line) {
            Ok(Cli { command: Some(Command::Token(arguments)), .. }) => Some(arguments),
            _ => None,
        };
        let arguments =
            tokens("roost token --user 42 --channel $gold --ttl 10m --info {}").unwrap();
        assert_eq!(arguments.user, "42");
        assert_eq!(arguments.channel.as_deref(), Some("$gold"));
        assert_eq!(arguments.ttl.as_secs(), 600);
        let arguments = tokens(
            "roost token --user 42 --channels a,b --subs {} --meta {} --aud x,y --expire-at 0 --claims {}",
        )
        .unwrap();
        assert_eq!((arguments.channels.len(), arguments.aud.len()), (2, 2));
        assert_eq!(arguments.expire_at, Some(0));
        let line = "roost token --user 1 --channel c --client d --data [] --override {} --jti j";
        assert!(tokens(line).is_some());
        for line in [
            "roost token",
            "roost token --user 1 --ttl soon",
            "roost token --user 1 --info {",
            "roost token --user 1 --client c",
            "roost token --user 1 --data {}",
            "roost token --user 1 --override {}",
            "roost token --user 1 --meta []",
            "roost token --user 1 --claims 1",
            "roost token --user 1 --subs a",
            "roost token --user 1 --expire-at soon",
            "roost token --user 1 --channel c --subs {}",
            "roost token --user 1 --channel c --channels d",
            "roost token --user 1 --channel c --meta {}",
            "roost config",
            "roost config check",
            "roost config default --format xml",
            "roost tune --connections many",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
        for line in [
            "roost config check f.toml --strict",
            "roost config default --format json",
            "roost tune --connections 1000000 --apply --write sysctl",
            "roost version",
        ] {
            assert!(parse(line).is_ok(), "{line}");
        }
    }

    #[test]
    fn help_is_complete() {
        let mut command = Cli::command();
        let serve = command.find_subcommand_mut("serve").unwrap();
        let help = serve.render_long_help().to_string();
        for flag in FLAGS.iter() {
            let listed = help.contains(&format!("--{}", flag.name));
            assert!(listed || !flag.option.is_built(), "{}", flag.name);
        }
        assert!(!help.contains("--uni_grpc.enabled"));
        assert!(help.contains("Port to listen on"));
    }
}
