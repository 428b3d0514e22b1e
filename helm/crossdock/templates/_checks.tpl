{{/* What the schema can't tell, refused before anything is installed. */}}

{{- define "crossdock.checks" -}}
{{- include "crossdock.checkCluster" .Values.cluster }}
{{- include "crossdock.checkTls" . }}
{{- include "crossdock.checkAutoscaling" . }}
{{- include "crossdock.checkPodLabels" . }}
{{- include "crossdock.checkMetricsPorts" . }}
{{- end }}

{{/* Takes `cluster`: what would be refused by every pod that reads it. */}}
{{- define "crossdock.checkCluster" -}}
{{- $kv := .kv | default dict }}
{{- $device := dig "engine" "device" "cpu" . }}
{{- $transports := dict "cpu" (list "auto" "shm" "tcp") "cuda" (list "auto" "cuda_ipc" "nccl") }}
{{- $transport := $kv.transport | default "auto" }}
{{- if lt (int (dig "pools" "decode" "replicas" 1 .)) 1 }}
{{- fail "cluster.pools.decode.replicas = 0: must be at least 1, or nobody streams answers" }}
{{- else if and (hasKey $kv "memory") (hasKey $kv "num_blocks") }}
{{- fail "cluster.kv: give memory or num_blocks, not both" }}
{{- else if not (has $transport (get $transports $device)) }}
{{- fail (printf "cluster.kv.transport = %s: with engine.device = %s blocks can go over %s" $transport $device (get $transports $device | join ", ")) }}
{{- else if and (dig "auth" "required" false .) (not (include "crossdock.someKey" .)) }}
{{- fail "cluster.auth.required: no tenant of cluster.tenants has a key; leave it out if they are in router.tenantsSecret, which has its own auth" }}
{{- end }}
{{- end }}

{{- define "crossdock.someKey" -}}
{{- range .tenants }}{{ range .api_key_sha256 }}{{ . }}{{ end }}{{ end }}
{{- end }}

{{- define "crossdock.checkTls" -}}
{{- if and .Values.cluster.tls (or .Values.tls.enabled .Values.tls.doors.enabled) }}
{{- fail "cluster.tls: leave it out with tls.enabled and tls.doors.enabled, which make the files and name them" }}
{{- end }}
{{- if and .Values.tls.enabled (eq (include "crossdock.device" .) "cuda") (not .Values.tls.unencryptedNccl) }}
{{- $ranks := max (int (include "crossdock.ranks" (dict "root" . "pool" "prefill"))) (int (include "crossdock.ranks" (dict "root" . "pool" "decode"))) }}
{{- if or (gt $ranks 1) (ne (dig "kv" "transport" "auto" .Values.cluster) "cuda_ipc") }}
{{- fail "tls.enabled: on GPUs ranks and KV blocks go over NCCL, which is not encrypted; set tls.unencryptedNccl to true if that may be, leave it false, or keep to workers of one rank with cluster.kv.transport cuda_ipc, which leaves no host" }}
{{- end }}
{{- end }}
{{- if and (dig "admin" "token_sha256" list .Values.cluster) (not .Values.controller.tokenSecret.name) }}
{{- fail "controller.tokenSecret.name: is missing; with cluster.admin.token_sha256 pods need a token to drain when they end" }}
{{- end }}
{{- if and .Values.serviceMonitor.enabled (dig "metrics" "token_sha256" list .Values.cluster) (not .Values.serviceMonitor.tokenSecret.name) }}
{{- fail "serviceMonitor.tokenSecret.name: is missing; with cluster.metrics.token_sha256 Prometheus needs a token to read the routers' metrics" }}
{{- end }}
{{- end }}

{{- define "crossdock.checkAutoscaling" -}}
{{- $scaling := .Values.autoscaling }}
{{- $resources := .Values.router.resources }}
{{- if $scaling.enabled }}
{{- if or (lt (int $scaling.minReplicas) 1) (lt (int $scaling.maxReplicas) (int $scaling.minReplicas)) }}
{{- fail (printf "autoscaling.maxReplicas = %d: must be at least minReplicas = %d, and that at least 1" (int $scaling.maxReplicas) (int $scaling.minReplicas)) }}
{{- else if not (dig "limits" "cpu" (dig "requests" "cpu" "" $resources) $resources) }}
{{- fail "router.resources.requests.cpu: is missing; autoscaling measures routers against it" }}
{{- end }}
{{- end }}
{{- end }}

{{/* Services, network policies and budgets find pods by their own labels. */}}
{{- define "crossdock.checkPodLabels" -}}
{{- $own := include "crossdock.selectorLabels" . | fromYaml }}
{{- range $part := list "head" "controller" "prefill" "decode" "router" }}
{{- range $label, $_ := (index $.Values $part).podLabels }}
{{- if or (hasKey $own $label) (eq $label "app.kubernetes.io/component") }}
{{- fail (printf "%s.podLabels: %s is the chart's own; choose another name" $part $label) }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{/* A pod listens on other ports as well; those of Ray's nodes are KubeRay's and Ray's defaults. */}}
{{- define "crossdock.checkMetricsPorts" -}}
{{- $ranks := int (include "crossdock.mostRanksPerHost" .) }}
{{- range $process, $taken := dict "worker" (list 8080 52365) "controller" (list 50052 50053) }}
{{- $first := int (include "crossdock.metricsPort" (dict "root" $ "process" $process)) }}
{{- $last := eq $process "worker" | ternary (add $first $ranks -1) $first | int }}
{{- if gt $last 65535 }}
{{- fail (printf "cluster.metrics.%s_port = %d: must leave room for a port for each rank of a pod, up to 65535" $process $first) }}
{{- end }}
{{- range $port := $taken }}
{{- if and (le $first $port) (ge $last $port) }}
{{- fail (printf "cluster.metrics.%s_port = %d: port %d of these pods is taken; choose another one" $process $first $port) }}
{{- end }}
{{- end }}
{{- end }}
{{- $tokens := int (include "crossdock.tokenStreamPort" .) }}
{{- $first := int (include "crossdock.metricsPort" (dict "root" . "process" "worker")) }}
{{- if or (has $tokens (list 8080 52365)) (and (ge $tokens $first) (lt $tokens (add $first $ranks | int))) }}
{{- fail (printf "cluster.token_streams.port = %d: this port of the decode pods is taken; choose another one" $tokens) }}
{{- end }}
{{- end }}
