package cluster

import (
	"fmt"
	"os"
	"strconv"
)

// numberVar in the environment is the number of this cluster, from 0 to 9: clusters of different numbers can run at once. What kubelet sets by
// sysctl is set back to what it was when the cluster began, so the one that began first should end last.
const numberVar = "KEELSON_E2E_CLUSTER"

// number is 0 unless the environment says otherwise.
var number, errNumber = clusterNumber(os.Getenv(numberVar))

func clusterNumber(text string) (int, error) {
	if text == "" {
		return 0, nil
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 0 || n > 9 {
		return 0, fmt.Errorf("%s=%s: not a number from 0 to 9", numberVar, text)
	}
	return n, nil
}

// Names and addresses. None of one cluster's begins with what all of another's begin with.
var (
	label     = numbered("keelson-e2e", "keelson-e2e%d")
	bridge    = label
	groupRoot = label
	netPrefix = label + "-"
	hostIP    = fmt.Sprintf("10.%d.0.1", 77+number)
	etcdPort  = 23790 + 20*number
	etcdPeer  = 23800 + 20*number
	// Of the control plane's other programs, on the loopback address.
	controllersPort = 10257 + 20*number
	schedulerPort   = 10259 + 20*number
)

const (
	serviceIP = "10.96.0.1"
	apiPort   = 6443
)

func numbered(none, format string) string {
	if number == 0 {
		return none
	}
	return fmt.Sprintf(format, number)
}

// DefaultDir is where the cluster's files are unless somebody says otherwise. It is on the disk: images and pools are large.
func DefaultDir() string { return "/var/tmp/" + label }
