//! The table of client tokens: made, listed, revoked, with their last use.

use diesel::{
    BoolExpressionMethods, ExpressionMethods, Insertable, OptionalExtension, QueryDsl, Queryable, RunQueryDsl,
};
use serde_json::{Value, json};
use uuid::Uuid;

use super::{
    Store, StoreError,
    changes::{self, NewChange},
    engine::{
        columns::{self, Cursor, Page, clean, page_of},
        connection::{AnyConnection, execute},
    },
    schema::client_tokens,
};
use crate::domain::{
    access::{Caller, Grant, Role, Scope},
    changes::ChangeKind,
    clock::Timestamp,
    ids::InstallationId,
    limits::UseLimits,
};

/// The most tokens that can be used at once: each takes some hundred bytes of memory.
pub(crate) const MAX_TOKENS: usize = 10_000;

const LIMITS: &str = "client_tokens.limits";

/// A token, as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TokenRow {
    pub token_id: Uuid,
    /// SHA-256 of the token, in hexadecimal.
    pub hash: String,
    pub scope: Scope,
    pub subject: String,
    pub role: Role,
    pub limits: UseLimits,
    /// The subject of the token with which it was made.
    pub created_by: String,
    pub created: Timestamp,
    pub expires: Option<Timestamp>,
    pub revoked: Option<Revoked>,
    /// Time of the last request, to the minute; absent until then.
    pub last_used: Option<Timestamp>,
}

/// The end of a token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Revoked {
    pub at: Timestamp,
    /// The subject of the token with which it was revoked.
    pub by: String,
}

impl TokenRow {
    /// True if requests may use the token.
    pub(crate) fn is_usable(&self, now: Timestamp) -> bool {
        self.revoked.is_none() && self.expires.is_none_or(|expires| now < expires)
    }

    /// The caller of a request with the token.
    pub(crate) fn caller(&self) -> Caller {
        Caller::new(Grant {
            token_id: Some(self.token_id),
            scope: self.scope.clone(),
            role: self.role,
            limits: self.limits,
            subject: self.subject.clone(),
            expires: self.expires,
        })
    }

    fn change(&self, kind: ChangeKind, actor: String, now: Timestamp) -> NewChange {
        let Scope { tenant, workspace, user } = &self.scope;
        let after = json!({
            "subject": self.subject, "role": self.role, "installationId": tenant, "workspaceId": workspace,
            "userId": user, "limits": self.limits, "expiresAt": self.expires,
        });
        NewChange {
            kind,
            tenant: tenant.clone(),
            workspace: workspace.clone(),
            object: self.token_id.to_string(),
            actor,
            actor_note: None,
            reason: None,
            before: Value::Null,
            after,
            now,
        }
    }

    /// The record of its creation.
    fn creation(&self) -> NewChange {
        self.change(ChangeKind::TokenCreated, self.created_by.clone(), self.created)
    }

    /// The record of its revocation.
    fn revocation(&self, by: String, now: Timestamp) -> NewChange {
        self.change(ChangeKind::TokenRevoked, by, now)
    }

    /// The position of this row in [`Store::list_tokens`].
    pub(crate) fn cursor(&self) -> Cursor {
        Cursor { created: self.created, id: self.token_id.to_string() }
    }
}

#[derive(Queryable, Insertable)]
#[diesel(table_name = client_tokens, treat_none_as_default_value = false)]
struct Record {
    token_id: String,
    token_hash: String,
    installation_id: Option<String>,
    workspace_id: Option<String>,
    user_id: Option<String>,
    subject: String,
    role: String,
    limits: String,
    created_by: String,
    created_us: i64,
    expires_us: Option<i64>,
    revoked_us: Option<i64>,
    revoked_by: Option<String>,
    last_used_us: Option<i64>,
}

impl Record {
    fn new(row: TokenRow) -> Result<Self, StoreError> {
        let Scope { tenant, workspace, user } = row.scope;
        let (revoked_us, revoked_by) = row.revoked.map(|it| (it.at.0, clean(it.by))).unzip();
        Ok(Self {
            token_id: row.token_id.to_string(),
            token_hash: row.hash,
            installation_id: tenant.map(|it| it.to_string()),
            workspace_id: workspace.map(|it| it.to_string()),
            user_id: user.map(|it| it.to_string()),
            subject: clean(row.subject),
            role: row.role.as_str().to_owned(),
            limits: columns::json_text(&row.limits, LIMITS)?,
            created_by: clean(row.created_by),
            created_us: row.created.0,
            expires_us: row.expires.map(|at| at.0),
            revoked_us,
            revoked_by,
            last_used_us: row.last_used.map(|at| at.0),
        })
    }

    fn read(self) -> Result<TokenRow, StoreError> {
        let scope = Scope {
            tenant: self
                .installation_id
                .map(|it| columns::parse(&it, "client_tokens.installation_id"))
                .transpose()?,
            workspace: self.workspace_id.map(|it| columns::parse(&it, "client_tokens.workspace_id")).transpose()?,
            user: self.user_id.map(|it| columns::parse(&it, "client_tokens.user_id")).transpose()?,
        };
        let revoked = self.revoked_us.zip(self.revoked_by);
        Ok(TokenRow {
            token_id: columns::parse(&self.token_id, "client_tokens.token_id")?,
            hash: self.token_hash,
            scope,
            subject: self.subject,
            role: columns::named(Role::from_name, &self.role, "client_tokens.role")?,
            limits: columns::json(&self.limits, LIMITS)?,
            created_by: self.created_by,
            created: Timestamp(self.created_us),
            expires: self.expires_us.map(Timestamp),
            revoked: revoked.map(|(at, by)| Revoked { at: Timestamp(at), by }),
            last_used: self.last_used_us.map(Timestamp),
        })
    }
}

impl Store {
    /// Adds a token, and the record of the change. Safe to retry with the same row.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] if [`MAX_TOKENS`] can be used already.
    ///
    /// # Cancel safety
    /// A dropped future may have written.
    pub(crate) async fn add_token(&self, row: TokenRow) -> Result<(), StoreError> {
        let change = changes::Record::new(row.creation())?;
        let (now, record) = (row.created, Record::new(row)?);
        self.write(move |tx| {
            let not_expired = client_tokens::expires_us.is_null().or(client_tokens::expires_us.gt(now.0));
            let usable = client_tokens::table.filter(client_tokens::revoked_us.is_null()).filter(not_expired);
            let usable: i64 = usable.count().get_result(tx.connection)?;
            if usize::try_from(usable).is_ok_and(|usable| usable >= MAX_TOKENS) {
                return Err(StoreError::Conflict(format!("there are {MAX_TOKENS} tokens: revoke some")));
            }
            let insert = diesel::insert_into(client_tokens::table).values(&record).on_conflict_do_nothing();
            tx.rows += execute!(tx.connection, insert)?;
            change.write(tx)
        })
        .await
    }

    /// Revokes a token, and records the change; returns whether the token was usable. The first revocation is kept. Safe to
    /// retry.
    ///
    /// # Cancel safety
    /// A dropped future may have written.
    pub(crate) async fn revoke_token(&self, row: TokenRow, by: String, now: Timestamp) -> Result<bool, StoreError> {
        let change = changes::Record::new(row.revocation(by.clone(), now))?;
        let (id, by) = (row.token_id.to_string(), clean(by));
        self.write(move |tx| {
            let row = client_tokens::table.find(&id).filter(client_tokens::revoked_us.is_null());
            let revoked = (client_tokens::revoked_us.eq(now.0), client_tokens::revoked_by.eq(by.as_str()));
            let revoked = diesel::update(row).set(revoked).execute(tx.connection)?;
            tx.rows += revoked;
            if revoked > 0 {
                change.write(tx)?;
            }
            Ok(revoked > 0)
        })
        .await
    }

    /// Writes when tokens were last used. Safe to retry.
    ///
    /// # Cancel safety
    /// A dropped future may have written.
    pub(crate) async fn record_token_use(&self, used: Vec<(Uuid, Timestamp)>) -> Result<(), StoreError> {
        self.write(move |tx| {
            for (id, at) in &used {
                let row = client_tokens::table.find(id.to_string());
                tx.rows += diesel::update(row).set(client_tokens::last_used_us.eq(at.0)).execute(tx.connection)?;
            }
            Ok(())
        })
        .await
    }

    /// Reads a token. Cancel-safe.
    pub(crate) async fn token(&self, id: Uuid) -> Result<Option<TokenRow>, StoreError> {
        self.read(move |connection| {
            let row = client_tokens::table.find(id.to_string());
            row.first::<Record>(connection).optional()?.map(Record::read).transpose()
        })
        .await
    }

    /// Reads a page of tokens, of one tenant or of all, newest first. Cancel-safe.
    pub(crate) async fn list_tokens(
        &self,
        tenant: Option<InstallationId>,
        page: Page,
    ) -> Result<Vec<TokenRow>, StoreError> {
        self.read(move |connection| {
            let mut rows = client_tokens::table.into_boxed();
            if let Some(tenant) = &tenant {
                rows = rows.filter(client_tokens::installation_id.eq(tenant.as_str()));
            }
            let rows = page_of!(rows, page, client_tokens::created_us, client_tokens::token_id);
            rows.load::<Record>(connection)?.into_iter().map(Record::read).collect()
        })
        .await
    }

    /// Reads every token that requests may use. Cancel-safe.
    pub(crate) async fn usable_tokens(&self, now: Timestamp) -> Result<Vec<TokenRow>, StoreError> {
        self.read(move |connection| {
            let rows = client_tokens::table.filter(client_tokens::revoked_us.is_null());
            let rows: Vec<Record> = rows.load(connection)?;
            let mut tokens = rows.into_iter().map(Record::read).collect::<Result<Vec<_>, _>>()?;
            tokens.retain(|token| token.is_usable(now));
            Ok(tokens)
        })
        .await
    }
}
