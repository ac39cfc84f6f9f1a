// Package image makes the container images that the test cluster needs, of Debian's packages and of programs that are built here.
//
// Goroutines: none.
package image

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"keelson.io/keelson/hack/image/archive"
	"keelson.io/keelson/test/e2e/debian"
)

// Recipe is how an image is made.
type Recipe struct {
	Config archive.Image
	Tree   debian.Tree
	// Files are written into it: path to content, all executable.
	Files map[string]string
	// Programs are copied into it: path in the image to path here.
	Programs map[string]string
	Links    map[string]string // path to target
}

const busyboxPath = "/bin/busybox"

// searchPath is where every image looks for programs.
const searchPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// shell is what a recipe needs to have a shell and the usual commands.
func shell(applets ...string) map[string]string {
	links := map[string]string{}
	for _, a := range append(applets, "sh") {
		links["/bin/"+a] = busyboxPath
	}
	return links
}

// applets are what tests run in containers.
var applets = []string{
	"awk", "cat", "chmod", "chown", "cp", "date", "dd", "df", "du", "echo", "env", "false", "find", "grep", "head", "hostname", "id", "kill", "ln",
	"ls", "md5sum", "mkdir", "mktemp", "mv", "nc", "od", "ps", "pwd", "rm", "rmdir", "sed", "seq", "sha256sum", "sleep", "sort", "stat", "sync", "tail",
	"tar", "tee", "test", "touch", "tr", "true", "truncate", "uname", "vi", "wc", "which", "xargs",
}

// PauseName is the image of sandboxes.
const PauseName = "keelson.test/pause:1"

// Names of images that the manifests name.
const (
	Busybox  = "docker.io/library/busybox:1.36"
	Postgres = "docker.io/library/postgres:11"
	Redis    = "docker.io/library/redis:4.0.1-alpine"
	Nginx    = "docker.io/dockerfile/nginx:latest"
	Web      = "k8s.gcr.io/test-webserver:latest"
	MariaDB  = "docker.io/library/mariadb:10"
)

// Pause is the image of sandboxes.
func Pause() Recipe {
	return Recipe{
		Config: archive.Image{Name: PauseName, Entrypoint: []string{busyboxPath, "sleep", "2147483647"}},
		Tree:   debian.Tree{Packages: []string{"busybox-static"}, Without: []string{"netbase"}},
	}
}

// Shell is an image with a shell and the usual commands.
func Shell(name string, cmd ...string) Recipe {
	r := Pause()
	r.Config = archive.Image{Name: name, Cmd: cmd}
	r.Links = shell(applets...)
	return r
}

// Program is an image of one static program.
func Program(name, program string) Recipe {
	path := "/usr/local/bin/" + filepath.Base(strings.SplitN(filepath.Base(program), "-v", 2)[0])
	return Recipe{Config: archive.Image{Name: name, Entrypoint: []string{path}}, Programs: map[string]string{path: program}}
}

// postgresEntry does what the entry point of the well-known image does, without a password, as releases of the manifest's time did.
const postgresEntry = `#!/bin/sh
set -e
export PGDATA="${PGDATA:-/var/lib/postgresql/data}" PATH="/usr/lib/postgresql/15/bin:$PATH"
mkdir -p "$PGDATA" /var/run/postgresql
chown -R postgres:postgres "$PGDATA" /var/run/postgresql
chmod 700 "$PGDATA"
as="/usr/bin/setpriv --reuid=postgres --regid=postgres --clear-groups"
if [ ! -s "$PGDATA/PG_VERSION" ]; then
	$as initdb -A trust -E UTF8 --locale=C.UTF-8 -D "$PGDATA"
	echo "host all all all trust" >>"$PGDATA/pg_hba.conf"
	sync # what is only in a node's memory is lost with the node
fi
exec $as postgres -D "$PGDATA" -c "listen_addresses=*" "$@"
`

// PostgreSQL is Debian's PostgreSQL under the name that the manifest gives.
func PostgreSQL() Recipe {
	links := shell(applets...)
	for _, p := range []string{"psql", "createdb", "pgbench", "pg_ctl"} {
		links["/usr/local/bin/"+p] = "/usr/lib/postgresql/15/bin/" + p
	}
	links["/usr/local/bin/su"] = "/usr/local/bin/as-user"
	return Recipe{
		Config: archive.Image{Name: Postgres, Entrypoint: []string{"/usr/local/bin/entry"}},
		Tree: debian.Tree{
			Packages: []string{"postgresql-15", "busybox-static", "util-linux"},
			Without:  []string{"libllvm*", "libz3-4", "netbase"},
		},
		Files: map[string]string{
			"/usr/local/bin/entry": postgresEntry,
			// `su USER`, as the exercise says it; the arguments after it are the program.
			"/usr/local/bin/as-user": "#!/bin/sh\nu=\"$1\"; shift\n[ $# -gt 0 ] || set -- sh\nexec /usr/bin/setpriv --reuid=\"$u\" --regid=\"$u\" --clear-groups \"$@\"\n",
		},
		Links: links,
	}
}

// RedisServer is Debian's Redis under the name that the manifest gives. It works in /data, as the well-known image does.
func RedisServer() Recipe {
	return Recipe{
		Config: archive.Image{Name: Redis, WorkDir: "/data", Entrypoint: []string{"/usr/local/bin/entry"}, Cmd: []string{"redis-server"}},
		Tree:   debian.Tree{Packages: []string{"redis-server", "busybox-static"}, Without: []string{"netbase"}},
		Files:  map[string]string{"/usr/local/bin/entry": "#!/bin/sh\nif [ \"$1\" = redis-server ]; then shift; set -- redis-server --protected-mode no \"$@\"; fi\nexec \"$@\"\n"},
		Links:  shell(applets...),
	}
}

// WebServer serves all files of its container on port 80.
func WebServer() Recipe {
	r := Shell(Web, "httpd", "-f", "-p", "80", "-h", "/")
	r.Links["/bin/httpd"], r.Links["/bin/wget"] = busyboxPath, busyboxPath
	return r
}

// mariaDBEntry is what the well-known image does, for a database without a password that only its own container reaches. Any user can run it.
const mariaDBEntry = `#!/bin/sh
set -e
[ -d /var/lib/mysql/mysql ] || mariadb-install-db --no-defaults --datadir=/var/lib/mysql --auth-root-authentication-method=normal --skip-test-db >/dev/null
exec mariadbd --no-defaults --datadir=/var/lib/mysql --tmpdir=/tmp --socket=/tmp/mariadb.sock --skip-networking "$@"
`

// MariaDBServer is Debian's MariaDB under the name of the well-known image.
func MariaDBServer() Recipe {
	links := shell(append([]string{"basename", "dirname"}, applets...)...)
	return Recipe{
		Config: archive.Image{Name: MariaDB, Entrypoint: []string{"/usr/local/bin/entry"}},
		Tree: debian.Tree{
			Packages: []string{"mariadb-server-core", "mariadb-client-core", "busybox-static"},
			Without:  []string{"netbase", "mariadb-common", "mysql-common"},
		},
		Files: map[string]string{
			"/usr/local/bin/entry":   mariaDBEntry,
			"/usr/local/bin/mariadb": "#!/bin/sh\nexec /usr/bin/mariadb --no-defaults --socket=/tmp/mariadb.sock \"$@\"\n",
		},
		Links: links,
	}
}

// Archive makes the image unless it is in the cache, and returns the archive's path.
func (r Recipe) Archive(ctx context.Context, cache string) (string, error) {
	key, err := r.key()
	if err != nil {
		return "", err
	}
	name := strings.NewReplacer("/", "_", ":", "_").Replace(r.Config.Name)
	file := filepath.Join(cache, "image", name+"-"+key+".tar")
	if _, err := os.Stat(file); err == nil {
		return file, nil
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return "", err
	}
	dir, err := os.MkdirTemp(cache, "rootfs-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(dir)
	if err := r.lay(ctx, cache, dir); err != nil {
		return "", fmt.Errorf("image %s: %w", r.Config.Name, err)
	}
	old, _ := filepath.Glob(filepath.Join(cache, "image", name+"-*.tar"))
	i := r.Config
	i.Env = append([]string{searchPath}, i.Env...)
	if err := archive.Write(ctx, i, dir, file); err != nil {
		return "", err
	}
	for _, o := range old { // only the newest is needed again
		_ = os.Remove(o)
	}
	return file, nil
}

// recipeVersion changes when the same recipe gives another image.
const recipeVersion = 2

func (r Recipe) key() (string, error) {
	h := sha256.New()
	b, err := json.Marshal(r)
	if err != nil {
		return "", err
	}
	fmt.Fprintf(h, "%d\n%s\n", recipeVersion, b)
	for _, p := range r.Programs {
		f, err := os.Open(p)
		if err != nil {
			return "", err
		}
		_, err = io.Copy(h, f)
		f.Close()
		if err != nil {
			return "", err
		}
	}
	return fmt.Sprintf("%x", h.Sum(nil)[:8]), nil
}

// lay makes the image's directory.
func (r Recipe) lay(ctx context.Context, cache, dir string) error {
	if len(r.Tree.Packages) > 0 {
		if err := r.Tree.Make(ctx, cache, dir); err != nil {
			return err
		}
	}
	place := func(path string) (string, error) {
		to := filepath.Join(dir, path)
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			return "", err
		}
		if err := os.Remove(to); err != nil && !errors.Is(err, os.ErrNotExist) {
			return "", err
		}
		return to, nil
	}
	for path, target := range r.Links {
		if _, err := os.Lstat(filepath.Join(dir, path)); err == nil {
			continue // the real one is there
		}
		to, err := place(path)
		if err == nil {
			err = os.Symlink(target, to)
		}
		if err != nil {
			return err
		}
	}
	for path, content := range r.Files {
		to, err := place(path)
		if err == nil {
			err = os.WriteFile(to, []byte(content), 0o755)
		}
		if err != nil {
			return err
		}
	}
	for path, from := range r.Programs {
		to, err := place(path)
		if err != nil {
			return err
		}
		b, err := os.ReadFile(from)
		if err == nil {
			err = os.WriteFile(to, b, 0o755)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
