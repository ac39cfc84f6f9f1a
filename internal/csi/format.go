package csi

import (
	"fmt"
	"io"
	"os"
	"strings"
)

// signature returns what is on a device: a file system, "unknown data, probably partitions", or "" if nothing. What an
// interrupted mkfs left is nothing: mkfs.ext4 writes its superblock last, and mkfs.xfs marks it as in progress until all is
// there.
func (h *host) signature(device string) (string, error) {
	f, err := os.Open(device)
	if err != nil {
		return "", err
	}
	defer f.Close()
	// blkid says of a device that can't be read that it has nothing.
	head := make([]byte, 128<<10)
	if _, err := io.ReadFull(f, head); err != nil {
		return "", err
	}
	if interruptedXFS(head) {
		return "", nil
	}
	return h.mounter.GetDiskFormat(device)
}

// interruptedXFS reports whether a superblock says that mkfs hasn't ended.
func interruptedXFS(head []byte) bool {
	const inProgress = 126 // sb_inprogress
	return string(head[:4]) == "XFSB" && head[inProgress] != 0
}

// format makes a file system on a device on which there is none. As the device is new there is nothing to discard. Its root is empty: programs
// such as initdb refuse a directory in which there is anything, and claims are often mounted just there. fsck makes lost+found anew when it needs it.
func (h *host) format(device string, f fileSystem) error {
	program := "mkfs." + f.fstype
	args := []string{"-F", "-m0", "-E", "nodiscard"}
	if f.fstype == "xfs" {
		args = []string{"-f", "-K"}
	}
	args = append(append(args, f.create...), device)
	out, err := h.mounter.Exec.Command(program, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s %s: %w: %s", program, strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	if f.fstype == "xfs" {
		return nil
	}
	if out, err := h.mounter.Exec.Command("debugfs", "-w", "-R", "rmdir lost+found", device).CombinedOutput(); err != nil {
		return fmt.Errorf("debugfs %s: remove lost+found: %w: %s", device, err, strings.TrimSpace(string(out)))
	}
	return nil
}
