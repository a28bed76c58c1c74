// JDBC; its cancel request is not encrypted before 42.7.
import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.SQLException;
import java.sql.Statement;
import java.util.Map;
import java.util.Properties;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.TimeUnit;

public class Driver {
    static String session(String port, String mode, String authority) throws Exception {
        var properties = new Properties();
        properties.putAll(Map.of(
            "user", System.getenv("PGUSER"), "password", System.getenv("PGPASSWORD"),
            "sslmode", mode, "sslrootcert", authority));
        var url = "jdbc:postgresql://" + System.getenv("PGHOST") + ":" + port + "/postgres";
        try (Connection connection = DriverManager.getConnection(url, properties);
                Statement statement = connection.createStatement()) {
            var row = statement.executeQuery("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()");
            row.next();
            var encrypted = row.getBoolean(1) ? "encrypted" : "plain";
            var later = CompletableFuture.delayedExecutor(300, TimeUnit.MILLISECONDS);
            var cancel = CompletableFuture.runAsync(() -> {
                try {
                    statement.cancel();
                } catch (SQLException error) {
                    throw new RuntimeException(error);
                }
            }, later);
            var ended = "slept";
            try {
                statement.executeQuery("SELECT pg_sleep(60)");
            } catch (SQLException error) {
                ended = error.getSQLState().equals("57014") ? "cancelled" : error.getSQLState();
            }
            cancel.get();
            return encrypted + ", " + ended;
        }
    }

    public static void main(String[] arguments) throws Exception {
        for (int at = 1; at < arguments.length; at++) {
            for (String mode : new String[] {"require", "verify-full"}) {
                System.out.println(mode + ": " + session(arguments[at], mode, arguments[0]));
            }
        }
    }
}
