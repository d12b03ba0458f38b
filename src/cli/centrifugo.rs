//! Commands by Centrifugo's names and with its flags, so that scripts go on working.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use super::flags::{CheckArgs, TokenArgs};
use super::init::{self, Keys};
use super::migrate::format_of;
use super::{check, fail, refuse, say, token};
use crate::base::time::UnixSeconds;
use crate::config::{self, PrintFormat, Sources};
use crate::edge::jwt::{Checked, TokenFault, TokenKeys};

/// Centrifugo's commands.
#[derive(Debug, clap::Subcommand)]
pub(super) enum Theirs {
    /// Check a configuration file (Centrifugo's name of `config check`).
    Checkconfig {
        /// Configuration file.
        #[arg(short, long, value_name = "FILE", default_value = config::DEFAULT_FILE)]
        config: PathBuf,
        /// Fail on unknown options as well.
        #[arg(short, long)]
        strict: bool,
    },
    /// Write a configuration with keys (Centrifugo's name of `config init`): JSON, YAML or TOML.
    Genconfig {
        /// File to write.
        #[arg(short, long, value_name = "FILE", default_value = config::DEFAULT_FILE)]
        config: PathBuf,
    },
    /// Print a connection token (Centrifugo's name of `token`).
    Gentoken(GenTokenArgs),
    /// Print a subscription token (Centrifugo's name of `token --channel`).
    Gensubtoken {
        /// Channel.
        #[arg(short = 's', long, value_name = "C")]
        channel: String,
        /// The same as for a connection token.
        #[command(flatten)]
        token: GenTokenArgs,
    },
    /// Check a connection token by the keys of a configuration.
    Checktoken(CheckTokenArgs),
    /// Check a subscription token by the keys of a configuration.
    Checksubtoken(CheckTokenArgs),
    /// Write a file with all options and their defaults (Centrifugo's name of `config default`).
    Defaultconfig {
        /// File to write.
        #[arg(short, long, value_name = "FILE", default_value = config::DEFAULT_FILE)]
        config: PathBuf,
        /// Configuration whose values replace the defaults.
        #[arg(short, long, value_name = "FILE")]
        base: Option<PathBuf>,
        /// Print it, and write no file.
        #[arg(short, long)]
        dry_run: bool,
    },
    /// Print all options as variables with their defaults.
    Defaultenv {
        /// Configuration whose values replace the defaults.
        #[arg(short, long, value_name = "FILE")]
        base: Option<PathBuf>,
        /// Only those that the base sets.
        #[arg(long, requires = "base")]
        base_non_zero_only: bool,
    },
    /// Print the description of all options, as Markdown.
    Configdoc {
        /// Only this section or option.
        #[arg(short, long, value_name = "NAME")]
        section: Option<String>,
        /// It is Markdown always; no page is served.
        #[arg(short, long)]
        markdown: bool,
    },
}

/// Arguments of `gentoken`.
#[derive(Debug, clap::Args)]
pub(super) struct GenTokenArgs {
    /// Configuration file with the key.
    #[arg(short, long, value_name = "FILE", default_value = config::DEFAULT_FILE)]
    config: PathBuf,
    /// User id; empty: an anonymous user.
    #[arg(short, long, value_name = "U", default_value = "")]
    user: String,
    /// Validity in seconds; 0 or less: no end.
    #[arg(
        short,
        long,
        value_name = "SECONDS",
        default_value_t = 604_800,
        allow_negative_numbers = true
    )]
    ttl: i64,
    /// Print the token alone, without a line feed.
    #[arg(short, long)]
    quiet: bool,
}

/// Arguments of `checktoken`.
#[derive(Debug, clap::Args)]
pub(super) struct CheckTokenArgs {
    /// The token.
    token: String,
    /// Configuration file with the keys.
    #[arg(short, long, value_name = "FILE", default_value = config::DEFAULT_FILE)]
    config: PathBuf,
}

pub(super) fn run(command: Theirs, environment: Vec<(String, String)>) -> ExitCode {
    match command {
        Theirs::Checkconfig { config, strict } => check::check(&CheckArgs { file: config, strict }),
        Theirs::Genconfig { config } => genconfig(&config),
        Theirs::Gentoken(arguments) => gentoken(&arguments, None, environment),
        Theirs::Gensubtoken { channel, token } => gentoken(&token, Some(channel), environment),
        Theirs::Checktoken(arguments) => checktoken(&arguments, false, environment),
        Theirs::Checksubtoken(arguments) => checktoken(&arguments, true, environment),
        Theirs::Defaultconfig { config, base, dry_run } => {
            defaultconfig(&config, base.as_deref(), dry_run)
        }
        Theirs::Defaultenv { base, base_non_zero_only } => {
            defaultenv(base.as_deref(), base_non_zero_only)
        }
        Theirs::Configdoc { section, .. } => configdoc(section.as_deref()),
    }
}

fn genconfig(file: &Path) -> ExitCode {
    let keys = match Keys::random() {
        Ok(keys) => keys,
        Err(fault) => return fail(&fault),
    };
    let options = json!({
        "client": {
            "token": {"hmac_secret_key": keys.token},
            "allowed_origins": [],
        },
        "admin": {"enabled": false, "password": keys.password, "secret": keys.secret},
        "http_api": {"key": keys.api},
    });
    let written = config::print_options(&options, format_of(file))
        .and_then(|text| init::write(file, &text, false).map_err(|fault| fault.to_string()));
    match written {
        Ok(()) => ExitCode::SUCCESS,
        Err(fault) => fail(&format!("{}: {fault}", file.display())),
    }
}

fn gentoken(
    arguments: &GenTokenArgs,
    channel: Option<String>,
    environment: Vec<(String, String)>,
) -> ExitCode {
    let GenTokenArgs { config, user, ttl, quiet } = arguments;
    let validity = Duration::from_secs(u64::try_from(*ttl).unwrap_or(0));
    let given = TokenArgs {
        user: user.clone(),
        channel: channel.clone(),
        ttl: validity,
        config: chosen(config),
        ..TokenArgs::default()
    };
    let made = match token::make(&given, environment) {
        Ok(made) => made,
        Err(exit) => return exit,
    };
    if *quiet {
        say(&made);
        return ExitCode::SUCCESS;
    }
    let user = if user.is_empty() { "anonymous user".to_owned() } else { format!("user {user:?}") };
    let channel = channel.map_or_else(String::new, |channel| format!(" and channel {channel:?}"));
    let ttl = if validity.is_zero() {
        "without expiration".to_owned()
    } else {
        format!("with expiration TTL {}", humantime::format_duration(validity))
    };
    say(&format!("HMAC SHA-256 JWT for {user}{channel} {ttl}:\n{made}\n"));
    ExitCode::SUCCESS
}

/// The file with the keys. The default one may be missing, which leaves the variables, as it does with
/// Centrifugo; a token by the key of a development node is nobody's intention who has named a file.
fn chosen(file: &Path) -> Option<PathBuf> {
    (file.exists() || file != Path::new(config::DEFAULT_FILE)).then(|| file.to_owned())
}

fn checktoken(
    arguments: &CheckTokenArgs,
    is_subscription: bool,
    environment: Vec<(String, String)>,
) -> ExitCode {
    let file = chosen(&arguments.config);
    let loaded = match config::load(&Sources { file, environment, ..Sources::default() }) {
        Ok(loaded) => loaded,
        Err(fault) => return refuse(&fault),
    };
    let tokens = &loaded.config.tokens;
    let options = if is_subscription { tokens.of_subscriptions() } else { &tokens.connection };
    let keys = match TokenKeys::new(options) {
        Ok(keys) => keys,
        Err(fault) => return fail(&fault.to_string()),
    };
    #[expect(clippy::disallowed_methods, reason = "a token is checked at the time of the command")]
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let now = UnixSeconds(i64::try_from(now).unwrap_or(i64::MAX));
    match verdict(&keys, &arguments.token, is_subscription, now) {
        Ok(text) => {
            say(&format!("{text}\n"));
            ExitCode::SUCCESS
        }
        Err(fault) => fail(&fault),
    }
}

/// The claims of a good token in a line.
fn verdict(
    keys: &TokenKeys,
    text: &str,
    is_subscription: bool,
    now: UnixSeconds,
) -> Result<String, String> {
    // Signatures by public keys are checked apart from claims: a shard does not wait for them.
    let checked = |pending: bool| -> Result<(), String> {
        if !pending {
            return Ok(());
        }
        match keys.check_signature(text, now) {
            Checked::Good { .. } => Ok(()),
            other => Err(format!("the signature can't be taken for good: {other:?}")),
        }
    };
    let said = |fault: TokenFault| format!("the token is not good: {}", fault.flaw());
    if is_subscription {
        let claims = keys.subscription(text, now);
        checked(claims.is_none())?;
        let claims = claims.unwrap_or_else(|| keys.subscription_signed(text, now)).map_err(said)?;
        return Ok(format!(
            "valid token for user {:?} and channel {:?}",
            claims.user, claims.channel
        ));
    }
    let claims = keys.connection(text, now);
    checked(claims.is_none())?;
    let claims = claims.unwrap_or_else(|| keys.connection_signed(text, now)).map_err(said)?;
    Ok(format!("valid token for user {:?}", claims.user))
}

/// All options with their defaults, and those of a base over them.
fn with_base(base: Option<&Path>) -> Result<(Value, Value), String> {
    let mut options: Value = serde_json::from_str(&config::print_defaults(PrintFormat::Json))
        .map_err(|fault| fault.to_string())?;
    let set = match base {
        Some(base) => config::migrate(base, None)?.options,
        None => json!({}),
    };
    merge(&mut options, &set);
    Ok((options, set))
}

fn merge(under: &mut Value, over: &Value) {
    match (under, over) {
        (Value::Object(under), Value::Object(over)) => {
            for (name, value) in over {
                merge(under.entry(name).or_insert(Value::Null), value);
            }
        }
        (under, over) => *under = over.clone(),
    }
}

fn defaultconfig(file: &Path, base: Option<&Path>, dry_run: bool) -> ExitCode {
    let format = format_of(file);
    let text = match (base, format) {
        // The one that explains itself.
        (None, PrintFormat::Toml) => Ok(config::print_defaults(format)),
        _ => with_base(base).and_then(|(options, _)| config::print_options(&options, format)),
    };
    match text {
        Err(fault) => fail(&fault),
        Ok(text) if dry_run => {
            say(&text);
            ExitCode::SUCCESS
        }
        Ok(text) => match init::write(file, &text, false) {
            Ok(()) => ExitCode::SUCCESS,
            Err(fault) => fail(&format!("{}: {fault}", file.display())),
        },
    }
}

fn defaultenv(base: Option<&Path>, set_only: bool) -> ExitCode {
    match with_base(base) {
        Ok((options, set)) => {
            say(&config::print_variables(if set_only { &set } else { &options }));
            ExitCode::SUCCESS
        }
        Err(fault) => fail(&fault),
    }
}

fn configdoc(section: Option<&str>) -> ExitCode {
    match section.map(config::explain) {
        // A test holds the document against the option table.
        None => say(include_str!("../../docs/configuration.md")),
        Some(Ok(text)) => say(&text),
        Some(Err(fault)) => return super::mistaken(&fault),
    }
    ExitCode::SUCCESS
}
