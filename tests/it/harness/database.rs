//! Changes the program's database from outside.

use diesel::{Connection, PgConnection, SqliteConnection, connection::SimpleConnection};

use super::{Program, program::PostgresDatabase};

/// Changes a row of the database, as another process of the service would.
pub(crate) fn change(database: &Option<PostgresDatabase>, program: &Program, sql: &str) {
    match database {
        Some(database) => PgConnection::establish(&database.url()).unwrap().batch_execute(sql).unwrap(),
        None => {
            let file = program.folder.path().join("data/lumilink.db");
            let mut sqlite = SqliteConnection::establish(&file.display().to_string()).unwrap();
            sqlite.batch_execute(&format!("PRAGMA busy_timeout = 5000; {sql}")).unwrap();
        }
    }
}

/// Has the database refuse a write, as a full disk does, until [`allow`].
pub(crate) fn refuse(database: &Option<PostgresDatabase>, program: &Program, write: &str) {
    let sql = match database {
        Some(_) => format!(
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'no space left'; END $$;
             CREATE TRIGGER refused BEFORE {write} FOR EACH ROW EXECUTE FUNCTION refuse()"
        ),
        None => format!("CREATE TRIGGER refused BEFORE {write} BEGIN SELECT RAISE(ABORT, 'no space left'); END"),
    };
    change(database, program, &sql);
}

/// Ends what [`refuse`] began.
pub(crate) fn allow(database: &Option<PostgresDatabase>, program: &Program, table: &str) {
    let sql = match database {
        Some(_) => format!("DROP TRIGGER refused ON {table}; DROP FUNCTION refuse"),
        None => "DROP TRIGGER refused".to_owned(),
    };
    change(database, program, &sql);
}
