//! Temporary `PostgreSQL` databases.

/// A temporary database on the `PostgreSQL` server that `tests/run` starts. Dropping the value drops the database.
#[derive(Debug)]
pub(crate) struct PostgresDatabase {
    maintenance: String,
    name: String,
}

impl PostgresDatabase {
    /// Creates a database.
    pub(crate) fn create() -> Self {
        let maintenance = std::env::var("LUMILINK_TEST_POSTGRES").unwrap_or_else(|_| {
            panic!("LUMILINK_TEST_POSTGRES names no PostgreSQL server: run tests/run, which starts one")
        });
        let name = format!("it_{}", uuid::Uuid::new_v4().simple());
        let database = Self { maintenance, name };
        database.execute(&format!("CREATE DATABASE {}", database.name));
        database
    }

    /// Its URL.
    pub(crate) fn url(&self) -> String {
        let mut url = url::Url::parse(&self.maintenance).expect("LUMILINK_TEST_POSTGRES is a URL");
        url.set_path(&self.name);
        url.to_string()
    }

    /// Creates a user who owns the database, and returns the URL with that user.
    pub(crate) fn with_owner(&self, password: &str) -> String {
        self.execute(&format!("CREATE USER {0} PASSWORD '{password}'", self.name));
        self.execute(&format!("ALTER DATABASE {0} OWNER TO {0}", self.name));
        self.url_of_owner(password)
    }

    /// Changes the password of the owner, closes the owner's connections, and returns the new URL.
    pub(crate) fn change_password(&self, password: &str) -> String {
        self.execute(&format!("ALTER USER {} PASSWORD '{password}'", self.name));
        self.execute(&format!(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{}'",
            self.name
        ));
        self.url_of_owner(password)
    }

    fn url_of_owner(&self, password: &str) -> String {
        let mut url = url::Url::parse(&self.url()).expect("a URL");
        url.set_username(&self.name).expect("a user");
        url.set_password(Some(password)).expect("a password");
        url.to_string()
    }

    /// The address of its server.
    pub(crate) fn server(&self) -> std::net::SocketAddr {
        let url = url::Url::parse(&self.maintenance).expect("LUMILINK_TEST_POSTGRES is a URL");
        let found = url.socket_addrs(|| Some(5432)).expect("the server's name is known");
        *found.first().expect("it has an address")
    }

    /// Its URL with another server address.
    pub(crate) fn url_at(&self, address: std::net::SocketAddr) -> String {
        let mut url = url::Url::parse(&self.url()).expect("a URL");
        url.set_ip_host(address.ip()).expect("a host");
        url.set_port(Some(address.port())).expect("a port");
        url.to_string()
    }

    /// The rows of all tables that contain a text.
    pub(crate) fn rows_with(&self, part: &str) -> Vec<String> {
        use diesel::{Connection, PgConnection, QueryableByName, RunQueryDsl, sql_types::Text};
        #[derive(QueryableByName)]
        struct Row {
            #[diesel(sql_type = Text)]
            text: String,
        }
        let mut connection = PgConnection::establish(&self.url()).expect("the PostgreSQL server answers");
        let mut read = |query: &str| -> Vec<String> {
            let rows: Vec<Row> = diesel::sql_query(query).load(&mut connection).expect(query);
            rows.into_iter().map(|row| row.text).collect()
        };
        let tables =
            read("SELECT table_name::text AS text FROM information_schema.tables WHERE table_schema = 'public'");
        tables
            .iter()
            .flat_map(|table| {
                read(&format!("SELECT t::text AS text FROM \"{table}\" t WHERE t::text LIKE '%{part}%'"))
            })
            .collect()
    }

    fn execute(&self, sql: &str) {
        use diesel::{Connection, PgConnection, RunQueryDsl};
        let mut connection = PgConnection::establish(&self.maintenance).expect("the PostgreSQL server answers");
        diesel::sql_query(sql).execute(&mut connection).expect(sql);
    }
}

impl Drop for PostgresDatabase {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.execute(&format!("DROP DATABASE {} WITH (FORCE)", self.name));
            self.execute(&format!("DROP USER IF EXISTS {}", self.name));
        }
    }
}

#[test]
fn database_is_created_under_its_own_url_and_dropped() {
    let database = PostgresDatabase::create();
    let url = database.url();
    assert!(url.contains(&database.name), "the URL contains the database's name");
    drop(database);
    use diesel::{Connection, PgConnection};
    assert!(PgConnection::establish(&url).is_err(), "the database is dropped");
}
