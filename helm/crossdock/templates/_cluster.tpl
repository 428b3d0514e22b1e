{{/* What follows from the ClusterSpec in `cluster`: the config file, and the shape of the pools. */}}

{{- define "crossdock.device" -}}
{{ dig "engine" "device" "cpu" .Values.cluster }}
{{- end }}

{{/* Takes {root, pool}: the settings of one pool as YAML. */}}
{{- define "crossdock.pool" -}}
{{ dig "pools" .pool dict .root.Values.cluster | toYaml }}
{{- end }}

{{- define "crossdock.replicas" -}}
{{ dig "replicas" 1 (include "crossdock.pool" . | fromYaml) }}
{{- end }}

{{/* Takes {root, pool}: ranks of a replica. */}}
{{- define "crossdock.ranks" -}}
{{- $pool := include "crossdock.pool" . | fromYaml }}
{{- mul (dig "tensor_parallel_size" 1 $pool) (dig "pipeline_parallel_size" 1 $pool) }}
{{- end }}

{{/* Takes {root, pool}: ranks in one pod. As many whole stages of the pipeline as a node has room for,
or, of stages that are larger than a node, equal parts: their tensor ranks talk at every layer. */}}
{{- define "crossdock.ranksPerHost" -}}
{{- $values := index .root.Values .pool }}
{{- $ranks := int (include "crossdock.ranks" .) }}
{{- $given := int $values.ranksPerHost }}
{{- $most := int $values.maxRanksPerHost }}
{{- if $given }}
{{- if mod $ranks $given }}
{{- fail (printf "%s.ranksPerHost = %d: must divide the %d ranks of a replica (cluster.pools.%s: tensor_parallel_size × pipeline_parallel_size)" .pool $given $ranks .pool) }}
{{- end }}
{{- $given }}
{{- else if lt $most 1 }}
{{- fail (printf "%s.maxRanksPerHost = %d: must be at least 1" .pool $most) }}
{{- else }}
{{- $stage := int (dig "tensor_parallel_size" 1 (include "crossdock.pool" . | fromYaml)) }}
{{- $unit := le $stage $most | ternary $stage 1 }}
{{- $units := le $stage $most | ternary (div $ranks $stage) $stage | int }}
{{- $taken := 1 }}
{{- range $count := untilStep 1 (int (add $units 1)) 1 }}
{{- if and (not (mod $units $count)) (le (mul $unit $count) $most) }}
{{- $taken = $count }}
{{- end }}
{{- end }}
{{- mul $unit $taken }}
{{- end }}
{{- end }}

{{- define "crossdock.hosts" -}}
{{ div (int (include "crossdock.ranks" .)) (int (include "crossdock.ranksPerHost" .)) }}
{{- end }}

{{/* Takes {root, pool}: what a rank takes of Ray. A resource of the pool's own leads it to its pods. */}}
{{- define "crossdock.rankResources" -}}
{{- $pool := include "crossdock.pool" . | fromYaml }}
{{- $own := dict (printf "crossdock_%s" .pool) 1 }}
{{- $gpu := eq (include "crossdock.device" .root) "cuda" | ternary (dict "GPU" 1) dict }}
{{- $given := get $pool "resources" }}
{{- merge $own (default $gpu $given) | toYaml }}
{{- end }}

{{/* Takes {root, pool}: thousandths of a CPU that a rank has, 0 if the values don't say. */}}
{{- define "crossdock.rankCpu" -}}
{{- $resources := include "crossdock.workerResources" . | fromYaml }}
{{- $cpu := dig "limits" "cpu" (dig "requests" "cpu" "0" $resources) $resources | toString }}
{{- $milli := hasSuffix "m" $cpu | ternary (trimSuffix "m" $cpu | float64) (mulf 1000 (float64 (trimSuffix "m" $cpu))) }}
{{- div (int $milli) (int (include "crossdock.ranksPerHost" .)) }}
{{- end }}

{{/* Settings of the engine. A container sees all cores of its node and may use a part of them: on CPUs
ranks compute with as many threads as they have CPUs, and leave it to the system which. */}}
{{- define "crossdock.engine" -}}
{{- $engine := deepCopy (.Values.cluster.engine | default dict) }}
{{- if eq (include "crossdock.device" .) "cpu" }}
{{- $cpus := list }}
{{- range $pool := list "prefill" "decode" }}
{{- $of := dict "root" $ "pool" $pool }}
{{- if int (include "crossdock.replicas" $of) }}
{{- $cpus = append $cpus (int (include "crossdock.rankCpu" $of)) }}
{{- end }}
{{- end }}
{{- $least := min (first $cpus) (last $cpus) }}
{{- if $least }}
{{- $engine = merge $engine (dict "threads" (max 1 (div $least 1000))) }}
{{- end }}
{{- $engine = merge $engine (dict "affinity" "none") }}
{{- end }}
{{- toYaml $engine }}
{{- end }}

{{/* The folder: the name in `cluster.model`, or that of a folder relative to where `crossdock tune` ran,
is one beside `model.path`. */}}
{{- define "crossdock.modelPath" -}}
{{- $given := get .Values.cluster "model" | default "" }}
{{- if not $given }}
{{- .Values.model.path }}
{{- else if hasPrefix "/" $given }}
{{- $given }}
{{- else }}
{{- printf "%s/%s" (dir .Values.model.path) (base $given) }}
{{- end }}
{{- end }}

{{/* Takes {root, process}: the first port for metrics of worker or controller; as many follow as a pod
has ranks. */}}
{{- define "crossdock.metricsPort" -}}
{{- int (dig "metrics" (printf "%s_port" .process) 0 .root.Values.cluster | default 9470) }}
{{- end }}

{{/* Where clients read tokens from decode workers; 0: nowhere. */}}
{{- define "crossdock.tokenStreamPort" -}}
{{- if dig "token_streams" "enabled" false .Values.cluster }}
{{- int (dig "token_streams" "port" 0 .Values.cluster | default 50061) }}
{{- else -}}
0
{{- end }}
{{- end }}

{{/* Most ranks that any pod has. */}}
{{- define "crossdock.mostRanksPerHost" -}}
{{- $prefill := int (include "crossdock.ranksPerHost" (dict "root" . "pool" "prefill")) }}
{{- $decode := int (include "crossdock.ranksPerHost" (dict "root" . "pool" "decode")) }}
{{- max $prefill $decode }}
{{- end }}

{{/* cluster.yaml: `cluster` with what this chart knows better. */}}
{{- define "crossdock.config" -}}
{{- $config := deepCopy .Values.cluster }}
{{- $_ := set $config "model" (include "crossdock.modelPath" .) }}
{{- $_ := set $config "engine" (include "crossdock.engine" . | fromYaml) }}
{{- with include "crossdock.tlsConfig" . | fromYaml }}
{{- $_ := set $config "tls" . }}
{{- end }}
{{- $store := include "crossdock.store" . }}
{{- if and $store (not $config.store) }}
{{- $_ := set $config "store" $store }}
{{- end }}
{{- $metrics := get $config "metrics" | default dict }}
{{- range $process := list "worker" "controller" }}
{{- $port := int (include "crossdock.metricsPort" (dict "root" $ "process" $process)) }}
{{- $_ := set $metrics (printf "%s_port" $process) $port }}
{{- end }}
{{- $_ := set $config "metrics" $metrics }}
{{- with int (include "crossdock.tokenStreamPort" .) }}
{{- $_ := set $config "token_streams" (dict "enabled" true "port" .) }}
{{- end }}
{{- $pools := get $config "pools" | default dict }}
{{- range $name := list "prefill" "decode" }}
{{- $resources := include "crossdock.rankResources" (dict "root" $ "pool" $name) | fromYaml }}
{{- $pool := get $pools $name | default dict }}
{{- $_ := set $pools $name (set $pool "resources" $resources) }}
{{- end }}
{{- set $config "pools" $pools | toYaml }}
{{- end }}

{{/* The part of the config that takes a restart of the routers. */}}
{{- define "crossdock.routerChecksum" -}}
{{- $config := include "crossdock.config" . | fromYaml }}
{{- range $name := list "prefill" "decode" }}
{{- $_ := unset (index $config "pools" $name) "replicas" }}
{{- end }}
{{- toYaml $config | sha256sum }}
{{- end }}

{{/* The part that takes a restart of the controller, and with it of all workers. */}}
{{- define "crossdock.controllerChecksum" -}}
{{- $config := include "crossdock.config" . | fromYaml }}
{{- range $name := list "prefill" "decode" }}
{{- $_ := unset (index $config "pools" $name) "replicas" }}
{{- end }}
{{- range $section := list "tenants" "auth" "admission" "store" }}
{{- $_ := unset $config $section }}
{{- end }}
{{- toYaml $config | sha256sum }}
{{- end }}
