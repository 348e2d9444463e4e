//! Tokens: who may use a cluster.

use reqwest::Method;

use super::request::{Effect, Request, encoded_part};
use super::{ClientError, ExampleClient};
use crate::body::{AuthRequired, CreateToken, TokenCreated, TokenList, TokenRevoked};

impl ExampleClient {
    /// Creates a token. It is not retried, because only its first response has the token: after a lost response, revoke
    /// it and create it again.
    ///
    /// # Errors
    ///
    /// [`ClientError::Rejected`] with the code `conflict` if a token has the name.
    pub async fn create_token(&self, token: &CreateToken) -> Result<TokenCreated, ClientError> {
        Ok(self.ask(None, &self.of_tokens(Method::POST, "/v1/tokens", Effect::Changes).json(token)?).await?.0)
    }

    /// Lists the tokens, without their texts.
    ///
    /// # Errors
    ///
    /// See [`ClientError`].
    pub async fn list_tokens(&self) -> Result<TokenList, ClientError> {
        Ok(self.ask(None, &self.of_tokens(Method::GET, "/v1/tokens", Effect::ReadsOnly)).await?.0)
    }

    /// Revokes a token.
    ///
    /// # Errors
    ///
    /// [`ClientError::Rejected`] with the code `token_not_found` if no token has the name.
    pub async fn revoke_token(&self, name: &str) -> Result<TokenRevoked, ClientError> {
        let target = format!("/v1/tokens/{}", encoded_part(name));
        let request = self.of_tokens(Method::DELETE, &target, Effect::Changes);
        Ok(self.ask(None, &request).await?.0)
    }

    /// Makes requests need a token, or none.
    ///
    /// # Errors
    ///
    /// See [`ClientError`].
    pub async fn require_tokens(&self, required: bool) -> Result<AuthRequired, ClientError> {
        let request = self.of_tokens(Method::POST, "/v1/auth", Effect::Changes).json(&AuthRequired { required })?;
        Ok(self.ask(None, &request).await?.0)
    }

    fn of_tokens(&self, method: Method, target: &str, effect: Effect) -> Request {
        Request::new(method, target, effect, self.deadline)
    }
}
