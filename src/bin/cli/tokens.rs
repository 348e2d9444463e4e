//! `token` and `auth`: who may use the cluster.

use raft_key_value::ExampleClient;
use raft_key_value::client::{CreateToken, ListedToken, TokenRole};

use super::arguments::{AuthCommand, RoleName, TokenCommand, TokenCreate};
use super::failure::Failure;
use super::output::Output;

/// `token` and the commands below it.
pub async fn token(client: &ExampleClient, mut output: Output, command: TokenCommand) -> Result<(), Failure> {
    match command {
        TokenCommand::Create(TokenCreate { name, role, prefixes, ttl, .. }) => {
            let role = match role {
                RoleName::Read => TokenRole::Read,
                RoleName::Write => TokenRole::Write,
                RoleName::Admin => TokenRole::Admin,
            };
            let prefixes = (!prefixes.is_empty()).then_some(prefixes);
            let created = client.create_token(&CreateToken { name, role, prefixes, ttl }).await?;
            output.line(&created, &created.token)?;
        }
        TokenCommand::List(_) => {
            let list = client.list_tokens().await?;
            if output.is_json() {
                output.line(&list, "")?;
            } else {
                let mut rows = vec![["NAME", "ROLE", "PREFIXES", "EXPIRES"].map(str::to_owned).to_vec()];
                rows.extend(list.tokens.iter().map(row_of));
                output.table(&rows)?;
            }
        }
        TokenCommand::Revoke(revoke) => {
            let revoked = client.revoke_token(&revoke.name).await?;
            output.line(&revoked, format!("revoked {}", revoked.revoked))?;
        }
    }
    Ok(output.flush()?)
}

fn row_of(token: &ListedToken) -> Vec<String> {
    let prefixes = if token.prefixes.is_empty() { "all keys".to_owned() } else { token.prefixes.join(" ") };
    let expires = token.expires_in_ms.map_or_else(|| "never".to_owned(), |left_ms| format!("in {} s", left_ms / 1000));
    vec![token.name.clone(), token.role.as_str().to_owned(), prefixes, expires]
}

/// `auth` and the commands below it.
pub async fn auth(client: &ExampleClient, mut output: Output, command: AuthCommand) -> Result<(), Failure> {
    let answer = client.require_tokens(matches!(command, AuthCommand::Enable(_))).await?;
    let text = if answer.required { "requests need a token" } else { "requests need no token any more" };
    output.line(&answer, text)?;
    Ok(output.flush()?)
}
