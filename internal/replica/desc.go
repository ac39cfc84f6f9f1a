package replica

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strconv"

	"keelson.io/keelson/internal/aio"
	"keelson.io/keelson/internal/block"
	"keelson.io/keelson/internal/wire"
)

// Errors of this package wrap one of these.
var (
	// ErrVersion: the directory was written by a newer version of Keelson.
	ErrVersion = errors.New("the replica has a newer format than this version of Keelson knows; upgrade this node")
	// ErrDamaged: the replica can't be used.
	ErrDamaged = errors.New("the replica is damaged beyond use; remove it, and another copy of the volume replaces it")
	// ErrUnreadable: the disk reads other things, but not what decides; nothing was changed, and opening it may work later.
	ErrUnreadable = errors.New("the disk can't read a copy of the replica's meta, which may be the newer one; look at the device of its pool")
	// ErrExists: there is a replica of that name already.
	ErrExists = errors.New("the replica exists already")
	// ErrNotFound: there is no replica in that directory.
	ErrNotFound = errors.New("there is no replica in this directory")
	// ErrDesc: the description makes no sense.
	ErrDesc = errors.New("impossible description of a replica")
)

// Config says where a replica is and what it runs on.
type Config struct {
	Loop aio.Loop
	// Dir is the replica's directory; absolute.
	Dir string
	// Run is the boot of this machine.
	Run string
	Log *slog.Logger
	// SumsCache is how many chunks' sums (8 KiB each) are kept in memory while the replica is in use.
	// 0 is DefaultSumsCache.
	SumsCache int
}

// DefaultSumsCache is enough for 8 GiB of data in use at a time, with 16 MiB of memory.
const DefaultSumsCache = 2048

// Desc describes a replica: enough to rebuild the metadata from the directories of all nodes.
type Desc struct {
	Cluster string         // id
	Volume  string         // id
	Name    string         // of the volume
	Replica wire.ReplicaID // unique for all time
	Column  int            // 0 … Columns-1
	Columns int
	Size    int64 // of the column, bytes
	// Policy is the volume as it was asked for, in JSON; may be empty.
	Policy json.RawMessage
}

type descJSON struct {
	Cluster string          `json:"cluster"`
	Volume  string          `json:"volume"`
	Name    string          `json:"name"`
	Replica string          `json:"replica"`
	Column  int             `json:"column"`
	Columns int             `json:"columns"`
	Size    int64           `json:"size"`
	Policy  json.RawMessage `json:"policy,omitempty"`
}

// MarshalJSON writes the replica's id as 16 hex digits.
func (d Desc) MarshalJSON() ([]byte, error) {
	return json.Marshal(descJSON{d.Cluster, d.Volume, d.Name, d.Replica.String(), d.Column, d.Columns, d.Size, d.Policy})
}

// UnmarshalJSON reads what MarshalJSON wrote.
func (d *Desc) UnmarshalJSON(b []byte) error {
	var j descJSON
	if err := json.Unmarshal(b, &j); err != nil {
		return err
	}
	id, err := strconv.ParseUint(j.Replica, 16, 64)
	if err != nil {
		return fmt.Errorf("replica id %q: %w", j.Replica, err)
	}
	*d = Desc{j.Cluster, j.Volume, j.Name, wire.ReplicaID(id), j.Column, j.Columns, j.Size, j.Policy}
	return nil
}

// maxSize bounds a column, and so the memory that a damaged description can ask for.
const maxSize = 64 << 40

func (d *Desc) validate() error {
	switch {
	case d.Size < block.Size || d.Size%block.Size != 0 || d.Size > maxSize:
		return fmt.Errorf("%w: size %d is not a multiple of %d between that and %d", ErrDesc, d.Size, block.Size, int64(maxSize))
	case d.Columns < 1 || d.Column < 0 || d.Column >= d.Columns:
		return fmt.Errorf("%w: column %d of %d", ErrDesc, d.Column, d.Columns)
	}
	return nil
}
