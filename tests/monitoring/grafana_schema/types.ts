// Grafana's own types, as its JSON is: an enum's member is written as its value. Panels are told apart by their type.
import type * as schema from "@grafana/schema";
import type * as heatmap from "@grafana/schema/dist/esm/raw/composable/heatmap/panelcfg/x/HeatmapPanelCfg_types.gen.d.ts";
import type * as stat from "@grafana/schema/dist/esm/raw/composable/stat/panelcfg/x/StatPanelCfg_types.gen.d.ts";
import type * as statetimeline from "@grafana/schema/dist/esm/raw/composable/statetimeline/panelcfg/x/StateTimelinePanelCfg_types.gen.d.ts";
import type * as timeseries from "@grafana/schema/dist/esm/raw/composable/timeseries/panelcfg/x/TimeSeriesPanelCfg_types.gen.d.ts";

type Json<T> = T extends string
  ? `${T}`
  : T extends number
    ? `${number}` extends `${T}`
      ? number
      : `${T}` extends `${infer N extends number}`
        ? N
        : never
    : T extends Array<infer Item>
      ? Array<Json<Item>>
      : T extends object
        ? { [Key in keyof T]: Json<T[Key]> }
        : T;

// The package has no types for Prometheus: a query is a DataQuery, an annotation keeps its expression beside the other keys.
interface PrometheusQuery extends schema.DataQuery {
  datasource: schema.DataSourceRef;
  expr: string;
  format: "time_series" | "table" | "heatmap";
  instant: boolean;
  legendFormat: string;
  range: boolean;
}

interface PrometheusAnnotation extends schema.AnnotationQuery {
  expr: string;
  titleFormat: string;
}

interface PanelOf<Type extends string, Options, Custom> extends Omit<schema.Panel, "type" | "options" | "fieldConfig" | "targets"> {
  type: Type;
  options: Options;
  fieldConfig: schema.FieldConfigSource<Custom>;
  targets: PrometheusQuery[];
}

type AnyPanel =
  | PanelOf<"timeseries", timeseries.Options, timeseries.FieldConfig>
  | PanelOf<"stat", stat.Options, Record<string, never>>
  | PanelOf<"heatmap", heatmap.Options, heatmap.FieldConfig>
  | PanelOf<"state-timeline", statetimeline.Options, statetimeline.FieldConfig>;

// The SDK writes the settings of every kind of variable on each; Grafana ignores those of other kinds.
interface Variable extends schema.VariableModel {
  auto?: boolean;
  auto_min?: string;
  auto_count?: number;
}

export type Dashboard = Json<
  Omit<schema.Dashboard, "panels" | "templating" | "annotations"> & {
    panels: Array<AnyPanel | schema.RowPanel>;
    templating: { list: Variable[] };
    annotations: { list: PrometheusAnnotation[] };
  }
>;
